"""Where two models differ, drawn on test images that are chosen by a rule and not by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from beyondpixel.datamodules import SegmentationDataModule
from beyondpixel.experiments.compare.rows import Row
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.rebuilding import build_data, load_model
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.lightning_modules import SegmentationModule
from beyondpixel.lightning_modules.pictures import comparison_sheet, denormalize

Mask = NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """One test image with two predictions.

    Attributes:
        image: uint8 (H, W, 3).
        truth, first, second: (H, W) class indices.
        gain: pixels that only the second has right minus pixels that only the first has right, as a share of all
            labelled ones.
    """

    image: NDArray[np.uint8]
    truth: Mask
    first: Mask
    second: Mask
    gain: float


def draw_rows(rows: Sequence[Row], metric: str, output: Path) -> None:
    """Draw the baseline row beside the best other row of the same table, each with its first seed.

    Args:
        rows: of one table, from `collect_rows`.
        metric: what the rows were compared by.
        output: a PNG file.

    Raises:
        UserError: if the rows are of several tables, there are no two rows with a result, or a checkpoint is missing.
    """
    tables = {row.table for row in rows}
    if len(tables) > 1:
        raise UserError(f"--picture compares rows of one table, got {', '.join(sorted(tables))}: name one folder")
    finished = [row for row in rows if row.mean is not None]
    first = next((row for row in finished if row.difference is None), None)
    others = [row for row in finished if row.difference is not None]
    if first is None or not others:
        raise UserError("--picture needs the baseline row and another row with a result")
    second = max(others, key=lambda row: row.mean or 0.0)
    draw(first.runs[0], second.runs[0], output, titles=(_title(first, metric), _title(second, metric)))


def draw(first: RunFolder, second: RunFolder, output: Path, *, titles: tuple[str, str]) -> None:
    """Draw image, truth, both predictions and their difference for three test images.

    The images are those where the second model gains most on the first, where its gain is the median, and where it is
    least (a loss, mostly), so both ways are shown.

    Args:
        first: the baseline's run.
        second: the other run; both have a `last` checkpoint and the same test images.
        output: a PNG file.
        titles: of the two predictions.
    """
    data = build_data(second.config)
    data.setup("test")
    models = [load_model(run) for run in (first, second)]
    examples = sorted(_examples(models, data), key=lambda example: -example.gain)
    chosen = [examples[0], examples[len(examples) // 2], examples[-1]] if len(examples) > 2 else examples
    names = [title.splitlines()[0] for title in titles]
    sheet = comparison_sheet(
        [example.image for example in chosen],
        [example.truth for example in chosen],
        (titles[0], [example.first for example in chosen]),
        (titles[1], [example.second for example in chosen]),
        palette=data.palette,
        class_names=data.class_names,
        ignore_index=data.ignore_index,
        heading=f"Test images where {names[1]} gains most on {names[0]}, where it gains the median, and the least: "
        + ", ".join(f"{100 * example.gain:+.1f} %" for example in chosen)
        + " of pixels",
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output)


@torch.inference_mode()
def _examples(models: Sequence[SegmentationModule], data: SegmentationDataModule) -> list[Example]:
    examples = []
    for batch in track(data.test_dataloader(), description="Looking for test images that differ"):
        predictions = [model(batch["image"]).argmax(1).numpy() for model in models]
        truths = batch["mask"].numpy()
        for image, truth, first, second in zip(batch["image"].numpy(), truths, *predictions, strict=True):
            picture = denormalize(image, data.mean, data.std)
            examples.append(Example(picture, truth, first, second, gain(first, second, truth, data.ignore_index)))
    return examples


def gain(first: Mask, second: Mask, truth: Mask, ignore_index: int) -> float:
    """By how much the second prediction has more pixels right than the first, as a share of the labelled pixels.

    Example:
        >>> truth = np.array([[0, 1, 1, 255]])
        >>> gain(np.array([[0, 0, 0, 0]]), np.array([[1, 1, 1, 1]]), truth, 255)  # 2 right minus 1 right, of 3
        0.3333333333333333
    """
    labelled = truth != ignore_index
    more = int(((second == truth) & labelled).sum()) - int(((first == truth) & labelled).sum())
    return more / max(1, int(labelled.sum()))


def _title(row: Row, metric: str) -> str:
    return f"{row.name.upper()}\n{metric} {100 * row.values[0]:.1f} %"
