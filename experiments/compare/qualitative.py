"""Where two models differ, drawn on test images that are chosen by a rule and not by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from beyondpixel.lightning_modules.visualization import Crop, busiest_crop, comparison_grid

EACH_WAY = 2
IMAGES_FILE = "test_images.npz"
Mask = NDArray[np.integer]


@dataclass(frozen=True)
class Example:
    """One test image with two predictions.

    Attributes:
        image: uint8 (H, W, 3).
        truth, first, second: (H, W) class indices.
    """

    image: NDArray[np.uint8]
    truth: Mask
    first: Mask
    second: Mask


@dataclass(frozen=True)
class Choice:
    """Test images and by how much the second model is ahead on each, with the rule in words.

    Attributes:
        gains: by image id, most first.
        rule: what a gain is.
    """

    gains: dict[str, float]
    rule: str


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
    """Draw image, truth, both predictions and their difference, with the window where they differ most enlarged.

    The images are the two where the second model is furthest ahead of the first, and the two where it is furthest
    behind, in boundary IoU per image (mean over the classes in it), so that neither way is left out. Where a run
    recorded no boundary areas, the share of pixels that are right decides; the heading says which.

    Args:
        first: the baseline's run.
        second: the other run; both have a `last` checkpoint and the same test images.
        output: a PNG file.
        titles: of the two predictions.
    """
    data = build_data(second.config)
    data.setup("test")
    models = [load_model(run) for run in (first, second)]
    names = [title.splitlines()[0] for title in titles]
    choice = by_boundaries(first, second) or by_pixels(models, data)
    chosen = both_ends(choice.gains)
    examples = [_example(name, models, data) for name in chosen]
    figures = ", ".join(f"{100 * gain:+.1f}" for gain in chosen.values())
    figure = comparison_grid(
        [example.image for example in examples],
        [example.truth for example in examples],
        (titles[0], [example.first for example in examples]),
        (titles[1], [example.second for example in examples]),
        palette=data.palette,
        class_names=data.class_names,
        ignore_index=data.ignore_index,
        heading=f"The test images where {names[1]} is furthest ahead of {names[0]} and furthest behind, of "
        f"{len(choice.gains)}, by {choice.rule}: {figures} points. Framed: where they differ most.",
        crops=[_window(example, data.ignore_index) for example in examples],
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def both_ends(gains: Mapping[str, float]) -> dict[str, float]:
    """The two images of the largest gains, then the two of the smallest; all where there are no more than four.

    Example:
        >>> both_ends({"a": 0.3, "b": 0.2, "c": 0.1, "d": 0.0, "e": -0.1})
        {'a': 0.3, 'b': 0.2, 'd': 0.0, 'e': -0.1}
    """
    ordered = list(gains.items())
    return dict(ordered[:EACH_WAY] + ordered[max(EACH_WAY, len(ordered) - EACH_WAY) :])


def by_boundaries(first: RunFolder, second: RunFolder) -> Choice | None:
    """Gains in boundary IoU per image, from the areas that both runs recorded; None if one did not."""
    scores = []
    for run in (first, second):
        file = run.path / IMAGES_FILE
        arrays = dict(np.load(file)) if file.exists() else {}
        if not {"id", "boundary_intersection", "boundary_union"} <= set(arrays):
            return None
        means = mean_ratio(arrays["boundary_intersection"], arrays["boundary_union"])
        scores.append(dict(zip(arrays["id"].tolist(), means.tolist(), strict=True)))
    if set(scores[0]) != set(scores[1]):
        raise UserError(f"--picture: {first.path} and {second.path} were tested on different images")
    gains = {name: scores[1][name] - scores[0][name] for name in scores[0]}
    known = {name: gain for name, gain in gains.items() if not np.isnan(gain)}
    return Choice(_most_first(known), "boundary IoU of the image")


def by_pixels(models: Sequence[SegmentationModule], data: SegmentationDataModule) -> Choice:
    """Gains in pixels that are right, for which all test images are predicted."""
    gains = {
        name: gain(example.first, example.second, example.truth, data.ignore_index)
        for name in track(data.dataset(data.test_split).ids, description="Looking for test images that differ")
        for example in [_example(name, models, data)]
    }
    return Choice(_most_first(gains), "share of pixels that are right (no boundary areas were recorded)")


def mean_ratio(intersection: NDArray[np.int64], union: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per image, the mean over classes of intersection / union, where the union is not empty; NaN where all are.

    Args:
        intersection, union: (n, C).

    Example:
        >>> mean_ratio(np.array([[1, 0, 3]]), np.array([[2, 0, 4]]))
        array([0.625])
    """
    present = union > 0
    ratios = np.where(present, intersection / np.maximum(union, 1), 0.0)
    count = present.sum(1)
    return np.where(count > 0, ratios.sum(1) / np.maximum(count, 1), np.nan)


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


@torch.inference_mode()
def _example(name: str, models: Sequence[SegmentationModule], data: SegmentationDataModule) -> Example:
    samples = data.dataset(data.test_split)
    sample = samples[samples.ids.index(name)]
    assert sample.mask is not None  # test images have truth
    image = data.normalize({"image": torch.from_numpy(sample.image).permute(2, 0, 1)[None]})["image"]
    first, second = (model(image).argmax(1)[0].numpy() for model in models)
    return Example(sample.image, sample.mask, first, second)


def _window(example: Example, ignore_index: int) -> Crop:
    one_right = (example.first == example.truth) != (example.second == example.truth)
    return busiest_crop(one_right & (example.truth != ignore_index))


def _most_first(gains: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(gains.items(), key=lambda item: -item[1]))


def _title(row: Row, metric: str) -> str:
    return f"{row.name.upper()}\n{metric} {100 * row.values[0]:.1f} %"
