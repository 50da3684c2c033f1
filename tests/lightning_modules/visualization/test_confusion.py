"""The figure of a confusion matrix, and the callback that draws it."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from beyondpixel.lightning_modules.callbacks import ConfusionFigure
from beyondpixel.lightning_modules.visualization import confusion_figure

Make = Callable[..., Any]
FULL = (8, 48, 107)  # the color map's end, for 100 %


def _full_cells(figure: Figure, classes: int) -> float:
    """How many cells are painted as 100 %, the color bar aside, in cells of 0.42 inches at 120 dots."""
    file = io.BytesIO()
    figure.savefig(file)
    pixels = np.asarray(Image.open(file).convert("RGB"))
    pixels = pixels[:, : int(pixels.shape[1] * (0.9 if classes > 5 else 0.75))]
    return float((pixels == FULL).all(axis=-1).sum()) / (0.42 * 120) ** 2


def test_numbers_are_percent_of_the_rows() -> None:
    figure = confusion_figure(np.array([[3, 1, 0], [0, 0, 0], [1, 1, 6]]), ["a", "b", "c"], heading="Title")
    axes = figure.axes[0]
    shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "75", (0, 1): "25", (2, 0): "12", (2, 1): "12", (2, 2): "75"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a  33.3 %", "b  0.0 %", "c  66.7 %"]
    assert axes.get_title() == "Title"


def test_21_classes_have_cells_that_hold_numbers() -> None:
    names = [f"a class with name {index}" for index in range(21)]
    counts = np.random.default_rng(0).integers(1, 10_000, size=21)
    right = confusion_figure(np.diag(counts), names)
    # two or three digits are in each painted cell, and names must not take the matrix's room
    assert 13 < _full_cells(right, 21) < 21
    # rows are normalized: with equal shares in two columns no cell is full, whatever the counts
    assert _full_cells(confusion_figure(np.diag(counts) + np.roll(np.diag(counts), 1, axis=1), names), 21) < 0.5


def test_names_must_fit() -> None:
    with pytest.raises(ValueError, match=r"matrix must be \(C, C\) with C = 2 class_names, got \(3, 3\)"):
        confusion_figure(np.zeros((3, 3), dtype=int), ["a", "b"])


def test_a_test_draws_it(data: Any, tiny_module: Make, trainer: Make, tmp_path: Path) -> None:
    class Logger(CSVLogger):
        drawn: list[tuple[str, int, int]]

        def log_image(self, key: str, images: list[Image.Image], step: int) -> None:
            self.drawn = [*getattr(self, "drawn", []), (key, len(images), step)]

    logger = Logger(tmp_path)
    run = trainer(callbacks=[ConfusionFigure()], logger=logger)
    run.validate(tiny_module(), data, verbose=False)
    assert not (tmp_path / "images").exists()
    run.test(tiny_module(), data, verbose=False)
    assert Image.open(tmp_path / "images" / "test_confusion.png").width > 100
    assert logger.drawn == [("test/confusion", 1, 0)]
