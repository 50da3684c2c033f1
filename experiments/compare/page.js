"use strict";
// Sorting: a click on a header sorts by it, a second click the other way round; rows without a value stay last.
const number = (text) => parseFloat(text.replace(/^[[(]?\s*/, "").replace("\u2212", "-"));
const missing = (text) => text === "\u2013" || text === "";

function sortBy(header, table) {
  const column = header.cellIndex;
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, text: row.cells[column].textContent.trim() }));
  const present = rows.filter(({ text }) => !missing(text));
  const numeric = present.every(({ text }) => !Number.isNaN(number(text)));
  present.sort((a, b) => {
    const order = numeric ? number(a.text) - number(b.text) : a.text.localeCompare(b.text, undefined, { numeric: true });
    return down ? -order : order;
  });
  table.tBodies[0].append(...[...present, ...rows.filter(({ text }) => missing(text))].map(({ row }) => row));
}

for (const table of document.querySelectorAll("table")) {
  for (const header of table.tHead.rows[0].cells) {
    header.querySelector("button").addEventListener("click", () => sortBy(header, table));
  }
}

// Pictures: two layers of one test image, the left one cut off where the slider stands.
const load = (source) =>
  new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve(picture);
    picture.onerror = () => reject(new Error("a picture cannot be shown"));
    picture.src = source;
  });

const pixels = (picture, width, height) => {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
};

class Browser {
  constructor(section, gallery) {
    this.section = section;
    this.gallery = gallery;
    for (const name of ["scene", "left", "right", "errors", "slider"]) this[name] = section.querySelector(`[name=${name}]`);
    this.canvases = { left: section.querySelector(".over"), right: section.querySelector(".under") };
    this.stage = section.querySelector(".stage");
    gallery.scenes.forEach((scene, index) => this.scene.add(new Option(scene.name, index)));
    const layers = [["image", "Image"], ["truth", "Truth"]].filter(([kind]) => gallery.scenes.some((scene) => scene[kind]));
    for (const select of [this.left, this.right]) {
      for (const [kind, text] of layers) select.add(new Option(text, kind));
      gallery.runs.forEach((run, index) => select.add(new Option(run, `run ${index}`)));
    }
    this.left.value = `run ${gallery.start[0]}`;
    this.right.value = `run ${gallery.start[1]}`;
    for (const control of [this.scene, this.left, this.right, this.errors]) control.addEventListener("change", () => this.draw());
    this.slider.addEventListener("input", () => this.wipe());
    const actions = { previous: () => this.step(-1), next: () => this.step(1), swap: () => this.swap() };
    for (const [name, action] of Object.entries(actions)) section.querySelector(`.${name}`).addEventListener("click", action);
    const keys = { p: actions.previous, n: actions.next, x: actions.swap };
    section.addEventListener("keydown", (event) => {
      const typing = event.target.tagName === "SELECT"; // a letter chooses an option there
      if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && keys[event.key]) keys[event.key]();
    });
    const follow = (event) => {
      const box = this.stage.getBoundingClientRect();
      this.slider.value = (100 * (event.clientX - box.left)) / box.width;
      this.wipe();
    };
    this.stage.addEventListener("pointerdown", (event) => { this.stage.setPointerCapture(event.pointerId); follow(event); });
    this.stage.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
    this.wipe();
    this.draw();
  }

  step(by) {
    const count = this.gallery.scenes.length;
    this.scene.selectedIndex = (this.scene.selectedIndex + by + count) % count;
    this.draw();
  }

  swap() {
    [this.left.value, this.right.value] = [this.right.value, this.left.value];
    this.draw();
  }

  wipe() {
    const share = Number(this.slider.value);
    this.canvases.left.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
    this.section.querySelector(".divider").style.left = `${share}%`;
  }

  source(scene, layer) {
    return layer.startsWith("run ") ? scene.predictions[this.gallery.runs[Number(layer.slice(4))]] : scene[layer];
  }

  async draw() {
    const scene = this.gallery.scenes[this.scene.selectedIndex];
    this.errors.disabled = !scene.truth;
    await Promise.all(["left", "right"].map((side) => this.paint(side, scene)));
    this.section.dataset.drawn = [this.scene.value, this.left.value, this.right.value, this.errors.checked].join("|");
  }

  async paint(side, scene) {
    const layer = this[side].value;
    const title = this[side].selectedOptions[0].text;
    const source = this.source(scene, layer);
    this.section.querySelector(`.name.${side}`).textContent = source ? title : `${title}: no picture of this image`;
    const canvas = this.canvases[side];
    const first = Object.values(scene.predictions)[0];
    const [picture, measure] = await Promise.all([source ? load(source) : null, load(scene.image || first)]);
    canvas.width = measure.width;
    canvas.height = measure.height;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = layer === "image";
    if (picture) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    if (picture && this.errors.checked && scene.truth && layer.startsWith("run ")) {
      await this.keepErrors(context, scene, picture);
    }
  }

  // what is right becomes pale, and so does what has no truth
  async keepErrors(context, scene, picture) {
    const { width, height } = context.canvas;
    const truth = pixels(await load(scene.truth), width, height).data;
    const shown = pixels(picture, width, height);
    const { data } = shown;
    const [red, green, blue] = this.gallery.void;
    for (let at = 0; at < data.length; at += 4) {
      const right = data[at] === truth[at] && data[at + 1] === truth[at + 1] && data[at + 2] === truth[at + 2];
      const unlabelled = truth[at] === red && truth[at + 1] === green && truth[at + 2] === blue;
      if (right || unlabelled) data[at + 3] = 30;
    }
    context.putImageData(shown, 0, 0);
  }
}

const galleries = JSON.parse(document.getElementById("galleries").textContent);
document.querySelectorAll("[data-gallery]").forEach((section) => new Browser(section, galleries[section.dataset.gallery]));
