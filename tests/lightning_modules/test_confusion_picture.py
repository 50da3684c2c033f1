"""The picture of a confusion matrix, and the callback that draws it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from beyondpixel.lightning_modules.callbacks import ConfusionPicture
from beyondpixel.lightning_modules.confusion_picture import confusion_picture, row_percentages

Make = Callable[..., Any]
FULL = (8, 48, 107)  # the colour map's end, for 100 %


def _full_cells(picture: Image.Image, classes: int) -> float:
    """How many cells are painted as 100 %, the colour bar aside, in cells of 0.42 inches at 120 dots."""
    pixels = np.asarray(picture)
    pixels = pixels[:, : int(pixels.shape[1] * (0.9 if classes > 5 else 0.75))]
    return float((pixels == FULL).all(axis=-1).sum()) / (0.42 * 120) ** 2


def test_rows_add_up_to_a_hundred_percent() -> None:
    percent = row_percentages(np.array([[3, 1, 0], [0, 0, 0], [1, 1, 6]]))
    np.testing.assert_allclose(percent[0], [75, 25, 0])
    assert np.isnan(percent[1]).all()
    np.testing.assert_allclose(percent[2], [12.5, 12.5, 75])


def test_21_classes_have_cells_that_hold_numbers() -> None:
    names = [f"a class with name {index}" for index in range(21)]
    counts = np.random.default_rng(0).integers(1, 10_000, size=21)
    right = confusion_picture(np.diag(counts), names)
    # two or three digits are in each painted cell, and names must not take the matrix's room
    assert 13 < _full_cells(right, 21) < 21
    # rows are normalised: with equal shares in two columns no cell is full, whatever the counts
    assert _full_cells(confusion_picture(np.diag(counts) + np.roll(np.diag(counts), 1, axis=1), names), 21) < 0.5


def test_names_must_fit() -> None:
    with pytest.raises(ValueError, match=r"confusion must be \(C, C\) with C = 2 class_names, got \(3, 3\)"):
        confusion_picture(np.zeros((3, 3), dtype=int), ["a", "b"])


def test_a_test_draws_it(data: Any, tiny_module: Make, trainer: Make, tmp_path: Path) -> None:
    class Logger(CSVLogger):
        drawn: list[tuple[str, int, int]]

        def log_image(self, key: str, images: list[Image.Image], step: int) -> None:
            self.drawn = [*getattr(self, "drawn", []), (key, len(images), step)]

    logger = Logger(tmp_path)
    run = trainer(callbacks=[ConfusionPicture()], logger=logger)
    run.validate(tiny_module(), data, verbose=False)
    assert not (tmp_path / "pictures").exists()
    run.test(tiny_module(), data, verbose=False)
    assert Image.open(tmp_path / "pictures" / "test_confusion.png").width > 100
    assert logger.drawn == [("test/confusion", 1, 0)]
