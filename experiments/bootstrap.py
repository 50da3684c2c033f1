"""Confidence intervals of scores over seeds and test images: a two-level bootstrap with percentile intervals.

Each draw takes as many test images as there are, with replacement, sums their pixel counts and computes IoU from the
sums (Efron 1979). It also takes the seeds of each row with replacement, independently of the images, since every seed
was tested on every image (the crossed bootstrap of Owen 2007, Ann. Appl. Stat. 1(2)). Of S seeds S − 1 are drawn, which
makes the variance over seeds the unbiased s²/S (McCarthy & Snowden 1985); S draws would give (S − 1)/S of it, half for
two seeds. All runs of all rows share the draws of images, so the difficulty of an image that is common to all of them
cancels out of a difference. With one seed only images are drawn: the interval describes this one training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from beyondpixel.experiments.image_counts import ImageCounts, iou_per_class, mean_iou

RESAMPLES = 5000
LEVEL = 0.95
SEED = 0
_DRAWN_AT_ONCE = 2**22  # image indices, 32 MB

Interval = tuple[float, float]
Scores = NDArray[np.float64]


def resampled_scores(
    counts: ImageCounts, *, class_index: int | None = None, resamples: int = RESAMPLES, seed: int = SEED
) -> Scores:
    """Score one run on bootstrap resamples of its test images.

    Images are sorted by id, and the draws depend only on their number and the seed, so the draws of two runs on the
    same images are paired, in whatever order each run saw them.

    Args:
        counts: the pixel counts of n images.
        class_index: the class whose IoU is the score; None for mIoU.
        resamples: the number of draws.
        seed: the random seed of the draws.

    Returns:
        (resamples,) scores in 0..1; NaN where the union of the class, or for mIoU of all classes, is empty in a draw.

    Raises:
        ValueError: if `resamples` or the number of images is less than 1.

    Example:
        >>> counts = ImageCounts(np.array(["a", "b"]), *np.array([[[3], [1]], [[4], [2]], [[3], [3]]]))
        >>> np.unique(resampled_scores(counts)).tolist()  # b twice, one of each, a twice
        [0.25, 0.5, 0.75]
    """
    order = np.argsort(counts.id)
    # float64 products use the fast matrix multiplication, and are exact up to 2^53 pixels
    intersection, union = (array[order].astype(np.float64) for array in (counts.intersection, counts.union))
    scores = []
    for times in _draws(len(counts), resamples=resamples, seed=seed):
        sums = times @ intersection, times @ union  # (draws, C)
        scores.append(mean_iou(*sums) if class_index is None else iou_per_class(*sums)[:, class_index])
    return np.concatenate(scores)


def mean_interval(runs: Sequence[Scores]) -> Interval:
    """The 95 % interval of a row's mean over its seeds.

    Args:
        runs: from `resampled_scores`, one per seed, on the same images.

    Returns:
        Lower and upper end, in 0..1; NaN if no draw has a score.

    Example:
        >>> mean_interval([np.full(99, 0.5), np.full(99, 0.7)])  # two seeds: one of them is drawn
        (0.5, 0.7)
    """
    return percentile_interval(mean_scores([runs])[0])


def mean_scores(rows: Sequence[Sequence[Scores]]) -> Scores:
    """Mean scores of several rows on the same draws of images, with seeds drawn separately for each row.

    Args:
        rows: from `resampled_scores`, one sequence per row with one entry per seed, all on the same images.

    Returns:
        (rows, resamples) scores in 0..1.

    Example:
        >>> mean_scores([[np.full(2, 0.5)], [np.full(2, 0.6), np.full(2, 0.6)]]).tolist()
        [[0.5, 0.5], [0.6, 0.6]]
    """
    generator = np.random.default_rng([SEED, 1])
    return np.stack([_row_mean(runs, generator) for runs in rows])


def difference_interval(baseline: Sequence[Scores], row: Sequence[Scores], *, same_trainings: bool = False) -> Interval:
    """The 95 % interval of the difference between the means of two rows.

    Args:
        baseline: from `resampled_scores`, one per seed, of the row that differences refer to.
        row: the same for the other row, on the same images; the numbers of seeds may differ.
        same_trainings: whether both rows evaluate the same trained models, in the same order: then the same seeds are
            drawn for both. Seeds of different trainings are drawn independently, even if the seeds are equal.

    Returns:
        Lower and upper end of (mean over `row`) − (mean over `baseline`), in −1..1; NaN if no draw has a score for all
        runs.

    Example:
        >>> target = np.array([[4], [4], [4]])
        >>> worse = ImageCounts(np.array(["c", "b", "a"]), target - 2, target - 2, target)  # IoU 2 / 4 everywhere
        >>> better = ImageCounts(np.array(["a", "b", "c"]), target - 1, target - 1, target)  # IoU 3 / 4 everywhere
        >>> difference_interval([resampled_scores(worse)], [resampled_scores(better)])
        (0.25, 0.25)
    """
    if same_trainings:
        return mean_interval([ours - base for ours, base in zip(row, baseline, strict=True)])
    ours, base = mean_scores([row, baseline])
    return percentile_interval(ours - base)


def _row_mean(runs: Sequence[Scores], generator: np.random.Generator) -> Scores:
    """Mean over S − 1 seeds drawn from S, once for each draw of images: (resamples,)."""
    scores = np.stack(runs)  # (S, resamples)
    seeds, resamples = scores.shape
    if seeds == 1:
        return runs[0]
    drawn = generator.integers(seeds, size=(seeds - 1, resamples))
    mean: Scores = np.take_along_axis(scores, drawn, axis=0).mean(axis=0)
    return mean


def _draws(images: int, *, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each image was drawn, (b, n) at a time."""
    if resamples < 1 or images < 1:
        raise ValueError(f"resamples and the number of images must be 1 or more, got {resamples} and {images}")
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // images)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)


def percentile_interval(scores: Scores) -> Interval:
    """The middle 95 % of the draws that have a score; NaN if none has."""
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return float("nan"), float("nan")
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
