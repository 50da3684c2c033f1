"""Image grid of two rows on the test images, chosen by a rule, where they differ most in either direction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from beyondpixel.experiments.compare.rows import Comparison
from beyondpixel.experiments.compare.units import best, unit_of
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.image_counts import ImageCounts, mean_iou
from beyondpixel.experiments.inference.checkpoints import load_trained
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.lightning_modules.visualization import busiest_crop, comparison_grid

PER_DIRECTION = 2


def draw_rows(comparison: Comparison, output: Path) -> None:
    """Draw the baseline row beside the best other row of the same table, each with its first seed, into a PNG file.

    Raises:
        UserError: if the rows are from several tables, there are no two trained rows with a result, or a checkpoint or
            the counts of each image are missing.
    """
    if len(comparison.tables) > 1:
        raise UserError(f"--grid compares rows of one table, got {', '.join(comparison.tables)}: name one folder")
    first_runs = comparison.scored[comparison.scored["evaluation"].isna()].groupby("row", sort=False).first()
    rows = comparison.rows[comparison.rows["row"].isin(first_runs.index)].set_index("row")
    baseline, others = rows.index[rows["is_baseline"]], rows[~rows["is_baseline"]]
    if len(baseline) != 1 or not len(others):
        raise UserError("--grid needs the baseline row and another row with a result")
    runs, titles = [], []
    for row in (baseline[0], best(others["mean"], comparison.metric)):
        unit, score = unit_of(comparison.metric), first_runs.loc[row, comparison.metric]
        runs.append(first_runs.loc[row, "run"])
        titles.append(f"{row}\n{comparison.metric}{unit.label} {unit.number(score)}")
    draw_runs(runs[0], runs[1], output, titles=(titles[0], titles[1]))


@torch.inference_mode()
def draw_runs(first: RunFolder, second: RunFolder, output: Path, *, titles: tuple[str, str]) -> None:
    """Draw image, target, both predictions and their difference, with the crop where they differ most enlarged.

    The images are the two where the second model is furthest ahead of the first and the two where it is furthest
    behind, in the image's boundary IoU (mean over its classes), or in its IoU where a run has no boundary counts.
    """
    scores, rule = image_scores(first, second)
    chosen = pd.concat([scores[:PER_DIRECTION], scores[PER_DIRECTION:][-PER_DIRECTION:]])  # all of at most four
    loaded = [load_trained(run.last_checkpoint, run.config) for run in (first, second)]
    (_, other), (_, data) = loaded
    if other.image_size != data.image_size:
        raise UserError(f"--grid: the rows' images have two sizes, {other.image_size} and {data.image_size}")
    data.setup("test")
    samples = data.dataset(data.test_split)
    shown = [samples[samples.ids.index(name)] for name in chosen.index]
    targets = [np.asarray(sample.mask) for sample in shown]
    tensors = [torch.tensor(sample.image).permute(2, 0, 1)[None] for sample in shown]
    preds = [
        [model(own.normalize({"image": tensor})["image"]).argmax(1)[0].numpy() for tensor in tensors]
        for model, own in loaded
    ]
    crops = [
        busiest_crop((ours == target) != (theirs == target))  # nowhere in void, which neither predicts
        for ours, theirs, target in zip(*preds, targets, strict=True)
    ]
    captions = [[f"{rule} {100 * score:.1f}" for score in chosen[side]] for side in (0, 1)]
    figure = comparison_grid(
        [sample.image for sample in shown],
        targets,
        (titles[0], preds[0]),
        (titles[1], preds[1]),
        palette=data.palette,
        class_names=data.class_names,
        ignore_index=data.ignore_index,
        heading=_heading(scores, chosen, rule, titles),
        captions=(captions[0], captions[1]),
        crops=crops,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def _heading(scores: pd.DataFrame, chosen: pd.DataFrame, rule: str, titles: tuple[str, str]) -> str:
    first, second = (title.splitlines()[0] for title in titles)
    points = ", ".join(f"{100 * gain:+.1f}" for gain in chosen[1] - chosen[0])
    return (
        f"The test images where {second} is furthest ahead of {first} and furthest behind, of {len(scores)}, by {rule} "
        f"of the image: {points} points. Framed: where they differ most."
    )


def image_scores(first: RunFolder, second: RunFolder) -> tuple[pd.DataFrame, str]:
    """Scores of both runs (columns 0 and 1) on each test image, the second's largest lead first, and the scores' name.

    Raises:
        UserError: if the counts of a run cannot be read, or the runs were tested on different images.
    """
    counts = [ImageCounts.load(run.images_file("test")) for run in (first, second)]
    if set(counts[0].id) != set(counts[1].id):
        raise UserError(f"--grid: {first.path} and {second.path} were tested on different images")
    by_boundary = all(one.boundary_union is not None for one in counts)
    names = ("boundary_intersection", "boundary_union") if by_boundary else ("intersection", "union")
    scores = [pd.Series(mean_iou(*(getattr(one, name) for name in names)), index=one.id) for one in counts]
    known = pd.concat(scores, axis=1).dropna()  # joined by id, in whatever order each run saw the images
    order = (known[0] - known[1]).sort_values(kind="stable").index
    return known.loc[order], "boundary IoU" if by_boundary else "IoU"
