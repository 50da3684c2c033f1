"""The page, read as text and used in a real browser."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.compare.report import write_report
from beyondpixel.experiments.compare.rows import compare_runs

NASTY = '<b>"R&B"</b></script><script>window.broken=1</script>'
CLASSES = {"test/IoU/sky": 0.9, "test/IoU/tree": 0.5, "test/IoU/<car>": 0.1}


def report(runs: Path, file: Path) -> None:
    write_report(compare_runs(read_runs([runs]), "test/mIoU"), file)


@pytest.fixture
def page_file(tmp_path: Path, make_run: Callable[..., Any], add_pictures: Callable[..., None]) -> Path:
    scores = {"ce": [0.40, 0.42], "bce": [0.09, 0.09], "rmi": [0.44, 0.46]}
    for row, values in scores.items():
        for seed, score in enumerate(values, start=1):
            run = make_run(tmp_path / "runs", row, seed, score, figures=CLASSES)
            add_pictures(run, ["a/1", "b"], wrong={"ce": 16, "bce": 24, "rmi": 8}[row])
    make_run(tmp_path / "runs", "late", 1, None)
    run = make_run(tmp_path / "runs", "x", 1, 0.41, figures=CLASSES, commit="other")
    run.record = {**run.record, "row": NASTY, "axes": {**run.record["axes"], "loss": "<i>&"}}
    add_pictures(run, ["b", "</script>"], wrong=0)
    file = tmp_path / "page" / "report.html"
    report(tmp_path / "runs", file)
    return file


class Addresses(HTMLParser):
    """Collects everything that an element could load or lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "data", "action", "srcset", "poster")
        self.found += [value or "" for name, value in attrs if name in names]


def test_nothing_leads_out_of_the_page_and_names_are_escaped(page_file: Path) -> None:
    text = page_file.read_text()
    parser = Addresses()
    parser.feed(text)
    assert all(address.startswith("#") for address in parser.found), parser.found
    assert {"link", "iframe", "object", "embed", "base", "b"}.isdisjoint(parser.tags)
    assert parser.tags.count("script") == 2
    assert "@import" not in text
    assert "url(" not in re.sub(r"url\(#", "", text)
    assert "&lt;b&gt;&quot;R&amp;B&quot;&lt;/b&gt;" in text
    # ids of two figures must not meet, and every reference must have its target
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in parser.found} <= set(ids)


def test_the_same_runs_give_the_same_page(page_file: Path) -> None:
    first = page_file.read_bytes()
    runs = page_file.parents[1] / "runs"
    report(runs, page_file)
    assert page_file.read_bytes() == first


def test_pictures_are_those_of_the_runs(page_file: Path) -> None:
    data = re.search(r'id="galleries">(.*?)</script>', page_file.read_text(), re.DOTALL)
    assert data
    (gallery,) = json.loads(data.group(1))
    scenes = {scene["name"]: dict(zip(gallery["layers"], scene["images"], strict=True)) for scene in gallery["scenes"]}
    assert list(scenes) == ["</script>", "a/1", "b"]
    assert gallery["layers"][:2] == ["Photo", "Target"]
    assert [gallery["layers"][index] for index in gallery["start"]] == ["Photo", "rmi, seed 1"]
    assert [layer for layer, picture in scenes["a/1"].items() if picture is None] == [f"{NASTY}, seed 1"]
    assert scenes["b"]["Photo"].startswith("data:image/jpeg;base64,")
    assert gallery["colors"] == [["sky", "#0000c8"], ["tree", "#00a000"], ["car", "#dc0000"]]


def test_damaged_images_are_named_and_left_out(
    tmp_path: Path, make_run: Callable[..., Any], add_pictures: Callable[..., None]
) -> None:
    runs = [make_run(tmp_path, row, 1, 0.5) for row in ("ce", "rmi")]
    for run in runs:
        add_pictures(run, ["a"], wrong=2)
    file = runs[0].path / "images" / "test.zip"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="ce/seed1/images/test.zip is damaged .* leaves its images out"):
        report(tmp_path, tmp_path / "report.html")
    assert '"layers": ["Photo", "Target", "rmi, seed 1"]' in (tmp_path / "report.html").read_text()


def test_the_page_stays_small(page_file: Path) -> None:
    template = files("beyondpixel.experiments.compare") / "page.html"
    assert len(template.read_text().splitlines()) <= 250


def test_runs_that_were_tested_near_boundaries_get_their_curve(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    for row in ("ce", "rmi"):
        make_run(tmp_path, row, 1, 0.5, figures={"test/trimap_mIoU/1": 0.2, "test/trimap_mIoU/4": 0.3})
    report(tmp_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count("<svg") == 2
    assert "pixels on either side of the true boundary" in text


def test_a_table_without_results_or_pictures(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    make_run(tmp_path, "ce", 1, 0.5)
    make_run(tmp_path, "ce", 1, None, table="u")
    report(tmp_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "data-gallery=" not in text
    assert "<h2>u</h2>" in text


@pytest.mark.slow
def test_in_a_browser(page_file: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(page_file)
    browser = "document.querySelector('[data-gallery]')"
    page.wait_for(f"{browser}.querySelector('img.right').complete")
    assert page.errors == []
    assert [address for address in page.requests if not address.startswith("data:")] == [page_file.resolve().as_uri()]
    assert page.ask("window.broken") is None

    # sorting by mean: ascending, then descending; what has no value stays last
    rows = "[...document.querySelector('table').tBodies[0].rows].map(r => r.cells[0].textContent.split(' ')[0])"
    means = "[...document.querySelectorAll('th button')].find(b => b.textContent.startsWith('test/mIoU'))"
    page.ask(f"{means}.focus()")
    page.press("Enter")
    assert page.ask(rows)[:2] == ["bce", "ce"]
    assert page.ask(rows)[-1] == "late"
    page.press("Enter")
    assert [page.ask(rows)[0], page.ask(rows)[-1]] == ["rmi", "late"]
    assert page.ask(f"{means}.parentElement.getAttribute('aria-sort')") == "descending"

    # the photo lies left and the best row right; the pixels are those of the files
    select = "document.querySelector('[name={}]').selectedOptions[0].text"
    assert (page.ask(select.format("left")), page.ask(select.format("right"))) == ("Photo", "rmi, seed 1")
    page.ask("document.querySelector('.next').click()")
    pixel = """(async (side, x) => {
        const image = document.querySelector(`.stage img.${side}`);
        await image.decode();
        const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
        canvas.getContext('2d').drawImage(image, 0, 0);
        return [...canvas.getContext('2d').getImageData(x, 1, 1, 1).data];
    })"""
    assert page.ask(f"{pixel}('right', 12)") == [0, 0, 200, 255]  # rmi is wrong in 8 columns
    assert page.ask(f"{pixel}('right', 4)") == [0, 160, 0, 255]  # there sky became tree
    assert page.ask(f"{pixel}('left', 12)")[:3] == pytest.approx([90, 90, 90], abs=3)
    page.ask("document.querySelector('[name=left]').value = 'ce, seed 1'")
    page.ask("document.querySelector('[name=left]').dispatchEvent(new Event('change'))")
    assert page.ask(f"{pixel}('left', 12)") == [0, 160, 0, 255]  # ce is wrong in 16

    # keyboard: the slider's arrows wipe, n and p change the image, x swaps
    page.ask("document.querySelector('[name=slider]').focus()")
    clip = "document.querySelector('img.left').style.clipPath"
    page.press("ArrowRight")
    assert page.ask(clip) == "inset(0px 49% 0px 0px)"
    page.press("n")
    assert page.ask(select.format("scene")) == "b"
    page.press("p")
    page.press("x")
    assert (page.ask(select.format("scene")), page.ask(select.format("left"))) == ("a/1", "rmi, seed 1")

    # a pointer drags
    box = "document.querySelector('.stage').getBoundingClientRect()"
    page.ask("document.querySelector('.stage').scrollIntoView()")
    x, y, width = (page.ask(f"{box}.{name}") for name in ("x", "y", "width"))
    page.drag((x + 10, y + 10), (x + width / 4, y + 10))
    assert page.ask("Number(document.querySelector('[name=slider]').value)") == pytest.approx(25, abs=1)
    assert page.errors == []


@pytest.mark.slow
def test_the_table_fits_a_laptop(tmp_path: Path, make_run: Callable[..., Any], open_page: Callable[..., Any]) -> None:
    """At 1280 pixels a table with several axes needs no scrolling."""
    for index in range(4):
        for seed in (1, 2):
            axes = {
                "loss": "rmi",
                "df": index,
                "region_size": index,
                "pooling": f"p{index}",
                "encoder": f"resnet{index}",
            }
            figures = {"test/boundary_F": 0.1}
            make_run(tmp_path, f"a_row_with_name_{index}", seed, 0.5, axes=axes, published=61.0, figures=figures)
    write_report(compare_runs(read_runs([tmp_path]), "test/mIoU", also=["test/boundary_F"]), tmp_path / "page.html")
    page = open_page(tmp_path / "page.html", width=1280)
    box = "document.querySelector('.scroll')"
    assert page.ask(f"{box}.scrollWidth") <= page.ask(f"{box}.clientWidth")
    assert page.ask("document.documentElement.scrollWidth") <= 1280


@pytest.mark.slow
def test_on_a_phone_in_the_dark(page_file: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(page_file, width=390, height=800, dark=True)
    page.wait_for("document.querySelector('[data-gallery] img.right').complete")
    assert page.ask("document.documentElement.scrollWidth") <= 390  # wide tables scroll in their own box
    assert page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert page.ask("getComputedStyle(document.querySelector('.plots svg')).color") == "rgb(231, 234, 238)"
    small = "[...document.querySelectorAll('button, select')].filter(e => e.getBoundingClientRect().height < 44).length"
    assert page.ask(small) == 0
