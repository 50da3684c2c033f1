"""The page, read as text and used in a real browser."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from beyondpixel.experiments.compare.report import write_report
from beyondpixel.experiments.compare.rows import collect_rows

NASTY = '<b>"R&B"</b></script><script>window.broken=1</script>'
CLASSES = {"test/IoU/sky": 0.9, "test/IoU/tree": 0.5, "test/IoU/<car>": 0.1}


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
    write_report(collect_rows([tmp_path / "runs"], metric="test/mIoU"), "test/mIoU", file)
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
    write_report(collect_rows([runs], metric="test/mIoU"), "test/mIoU", page_file)
    assert page_file.read_bytes() == first


def test_pictures_are_those_of_the_runs(page_file: Path) -> None:
    data = re.search(r'id="galleries">(.*?)</script>', page_file.read_text(), re.DOTALL)
    assert data
    (gallery,) = json.loads(data.group(1))
    assert [scene["name"] for scene in gallery["scenes"]] == ["</script>", "a/1", "b"]
    assert gallery["runs"][0] == "ce, seed 1"
    assert [gallery["runs"][index] for index in gallery["start"]] == ["ce, seed 1", "rmi, seed 1"]
    assert sorted(gallery["scenes"][1]["predictions"]) == sorted(set(gallery["runs"]) - {f"{NASTY}, seed 1"})


def test_runs_without_single_pictures_show_their_sheet(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    for row in ("ce", "rmi"):
        folder = make_run(tmp_path, row, 1, 0.5).path / "pictures"
        folder.mkdir()
        Image.new("RGB", (1500, 300), "navy").save(folder / "test_epoch3.png")
    write_report(collect_rows([tmp_path], metric="test/mIoU"), "test/mIoU", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/webp;base64,") == 2
    assert "sheet of the first test images" in text


def test_runs_that_were_tested_near_boundaries_get_their_curve(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    for row in ("ce", "rmi"):
        make_run(tmp_path, row, 1, 0.5, figures={"test/trimap_mIoU/1": 0.2, "test/trimap_mIoU/4": 0.3})
    write_report(collect_rows([tmp_path], metric="test/mIoU"), "test/mIoU", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count("<svg") == 2
    assert "pixels on either side of the true boundary" in text


def test_a_table_without_results_or_pictures(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    make_run(tmp_path, "ce", 1, 0.5)
    make_run(tmp_path, "ce", 1, None, table="u")
    write_report(collect_rows([tmp_path], metric="test/mIoU"), "test/mIoU", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "data-gallery=" not in text
    assert "<h2>u</h2>" in text


@pytest.mark.slow
def test_in_a_browser(page_file: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(page_file)
    browser = "document.querySelector('[data-gallery]')"
    page.wait_for(f"{browser}.dataset.drawn")
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

    # the baseline lies left and the best row right; the pixels are those of the files
    select = "document.querySelector('[name={}]').selectedOptions[0].text"
    assert (page.ask(select.format("left")), page.ask(select.format("right"))) == ("ce, seed 1", "rmi, seed 1")
    page.ask("document.querySelector('.next').click()")
    page.wait_for(f"{browser}.dataset.drawn.startsWith('1|')")
    pixel = "[...document.querySelector('.{}').getContext('2d').getImageData({}, 1, 1, 1).data]"
    assert page.ask(pixel.format("over", 12)) == [0, 160, 0, 255]  # ce is wrong in 16 columns: sky became tree
    assert page.ask(pixel.format("under", 12)) == [0, 0, 200, 255]  # rmi only in 8
    page.ask("document.querySelector('[name=errors]').click()")
    page.wait_for(f"{browser}.dataset.drawn.endsWith('true')")
    assert page.ask(pixel.format("over", 12))[3] == 255
    assert page.ask(pixel.format("under", 12))[3] == 30
    page.ask("document.querySelector('[name=errors]').click()")

    # keyboard: the slider's arrows wipe, n and p change the image, x swaps
    page.ask("document.querySelector('[name=slider]').focus()")
    clip = "document.querySelector('.over').style.clipPath"
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
def test_on_a_phone_in_the_dark(page_file: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(page_file, width=390, height=800, dark=True)
    page.wait_for("document.querySelector('[data-gallery]').dataset.drawn")
    assert page.ask("document.documentElement.scrollWidth") <= 390  # wide tables scroll in their own box
    assert page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert page.ask("getComputedStyle(document.querySelector('.plots svg')).color") == "rgb(231, 234, 238)"
    small = "[...document.querySelectorAll('button, select')].filter(e => e.getBoundingClientRect().height < 44).length"
    assert page.ask(small) == 0
