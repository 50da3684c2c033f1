"""The pictures that runs saved of their test, gathered for laying side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image

from beyondpixel.experiments.compare.rows import Row
from beyondpixel.experiments.run_folder import RunFolder

# a page has to be sent by mail and opened on a phone
MAX_RUNS = 60
MAX_WIDTH = 1024
SHEET = "sheet of the first test images"


@dataclass
class Scene:
    """One test image, as files' bytes.

    Attributes:
        name: the image's id.
        image: JPEG of the image; None for a sheet, which shows the image itself.
        truth: PNG of the truth.
        predictions: PNG by name of the run.
    """

    name: str
    image: bytes | None = None
    truth: bytes | None = None
    predictions: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """What a picture browser shows.

    Attributes:
        scenes: by name.
        runs: names of the runs that have pictures.
        colors: of each class, as (name, "#rrggbb").
        left_out: how many runs' pictures were left out to keep the page small.
    """

    scenes: tuple[Scene, ...]
    runs: tuple[str, ...]
    colors: tuple[tuple[str, str], ...]
    left_out: int


def gather(rows: Sequence[Row]) -> Gallery:
    """The pictures of the finished runs of one table.

    Runs that were tested before pictures were saved one by one give their sheet of test pictures instead. Above
    `MAX_RUNS` runs each row shows its first seed only.

    Args:
        rows: of one table, from `collect_rows`.
    """
    named = [(_run_name(row, run), run) for row in rows for run in row.finished]
    total = len(named)
    if total > MAX_RUNS:
        named = [(_run_name(row, row.finished[0]), row.finished[0]) for row in rows if row.finished][:MAX_RUNS]
    scenes: dict[str, Scene] = {}
    for name, run in named:
        if not _add_files(scenes, name, run):
            _add_sheet(scenes, name, run)
    shown = {name for scene in scenes.values() for name in scene.predictions}
    colors = next((found for _, run in named if (found := _colors(run))), ())
    return Gallery(
        tuple(scenes[name] for name in sorted(scenes)),
        tuple(name for name, _ in named if name in shown),
        colors,
        total - len(named),
    )


def _run_name(row: Row, run: RunFolder) -> str:
    return f"{row.name}, seed {run.record['seed']}"


def _add_files(scenes: dict[str, Scene], run_name: str, run: RunFolder) -> bool:
    files = sorted((run.path / "images" / "test").glob("*.prediction.png"))
    for file in files:
        stem = file.name.removesuffix(".prediction.png")
        scene = scenes.setdefault(unquote(stem), Scene(unquote(stem)))
        scene.predictions[run_name] = _within_width(file)
        for kind, attribute in (("image.jpg", "image"), ("target.png", "truth")):
            beside = file.with_name(f"{stem}.{kind}")
            if getattr(scene, attribute) is None and beside.exists():
                setattr(scene, attribute, _within_width(beside))
    return bool(files)


def _add_sheet(scenes: dict[str, Scene], run_name: str, run: RunFolder) -> None:
    sheets = sorted((run.path / "images").glob("test_epoch*.png"), key=lambda file: file.stat().st_mtime)
    if sheets:
        scene = scenes.setdefault(SHEET, Scene(SHEET))
        text = io.BytesIO()
        with Image.open(sheets[-1]) as sheet:
            sheet.thumbnail((MAX_WIDTH, 4 * MAX_WIDTH))
            sheet.convert("RGB").save(text, "WEBP", quality=80)
        scene.predictions[run_name] = text.getvalue()


def _within_width(file: Path) -> bytes:
    """A file's bytes; a picture that is too wide is made smaller, a mask without mixing its classes."""
    with Image.open(file) as picture:
        if picture.width <= MAX_WIDTH:
            return file.read_bytes()
        size = (MAX_WIDTH, round(picture.height * MAX_WIDTH / picture.width))
        mask = picture.mode == "P"
        text = io.BytesIO()
        smaller = picture.resize(size, Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS)
        smaller.save(text, "PNG" if mask else "JPEG", optimize=True)
        return text.getvalue()


def _colors(run: RunFolder) -> tuple[tuple[str, str], ...]:
    file = next((run.path / "images" / "test").glob("*.prediction.png"), None)
    if file is None or not run.confusion_file.exists():
        return ()
    with np.load(run.confusion_file) as arrays:
        names = [str(name) for name in arrays["class_names"]]
    with Image.open(file) as picture:
        palette = picture.getpalette() or []
    colors = [f"#{bytes(palette[3 * index : 3 * index + 3]).hex()}" for index in range(len(names))]
    return tuple(zip(names, colors, strict=True))
