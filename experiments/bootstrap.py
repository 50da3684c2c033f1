"""How far scores would move with other test images: the bootstrap over images (Efron 1979), percentile intervals.

Images are drawn with replacement, as many as there are; areas are summed over the draw and IoU is taken of the sums.
For two rows of a table the same draw serves all runs of both, so what makes an image hard for either cancels out of
their difference, which is that of the means over seeds. The intervals speak of the test images alone: the trained
networks are held fixed, so what another seed would give is told by the standard deviation over seeds and not by these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from beyondpixel.experiments.image_areas import ImageAreas, iou_per_class, mean_iou

RESAMPLES = 5000
LEVEL = 0.95
SEED = 0
_DRAWN_AT_ONCE = 2**22  # image numbers, 32 MB

Interval = tuple[float, float]
Scores = NDArray[np.float64]


def resampled_scores(
    areas: ImageAreas, *, class_index: int | None = None, resamples: int = RESAMPLES, seed: int = SEED
) -> Scores:
    """The score of one run on test sets drawn again from its own.

    Images are taken in the order of their ids, and the draws depend on their number and the seed alone: those of two
    runs on the same images are paired, whatever order each run has seen them in.

    Args:
        areas: of n images.
        class_index: the class whose IoU is the score; None for mIoU.
        resamples: how often to draw.
        seed: of the draws.

    Returns:
        (resamples,) scores in 0..1; NaN where a draw holds nothing of the class, or of any.

    Raises:
        ValueError: if there is nothing to draw.

    Example:
        >>> areas = ImageAreas(np.array(["a", "b"]), *np.array([[[3], [1]], [[4], [2]], [[3], [3]]]))
        >>> np.unique(resampled_scores(areas)).tolist()  # b twice, one of each, a twice
        [0.25, 0.5, 0.75]
    """
    order = np.argsort(areas.id)
    # float64 products use the fast matrix multiplication, and are exact up to 2^53 pixels
    intersection, union = (array[order].astype(np.float64) for array in (areas.intersection, areas.union))
    scores = []
    for times in _draws(len(areas), resamples=resamples, seed=seed):
        sums = times @ intersection, times @ union  # (draws, C)
        scores.append(mean_iou(*sums) if class_index is None else iou_per_class(*sums)[:, class_index])
    return np.concatenate(scores)


def bootstrap_miou(areas: ImageAreas) -> Interval:
    """The 95 % interval of one run's mIoU.

    Args:
        areas: of the run.

    Returns:
        Lower and upper end, in 0..1; NaN where no image holds any class.

    Raises:
        ValueError: if there are no images.

    Example:
        >>> areas = ImageAreas(np.array(["a", "b"]), *np.array([[[3], [1]], [[4], [2]], [[3], [3]]]))
        >>> low, high = bootstrap_miou(areas)
        >>> low, areas.mean_iou(), high  # of image b alone, of both, of image a alone
        (0.25, 0.5, 0.75)
    """
    return _interval(resampled_scores(areas))


def difference_interval(baseline: Sequence[Scores], row: Sequence[Scores]) -> Interval:
    """The 95 % interval of a difference between two rows of runs: seeds are averaged within each draw.

    Args:
        baseline: from :func:`resampled_scores`, one a seed, of the row that differences refer to.
        row: one a seed, of the other row, on the same images; the numbers of seeds may differ.

    Returns:
        Lower and upper end of (mean over `row`) − (mean over `baseline`), on the scale 0..1; NaN if no draw has a
        score for all runs.

    Example:
        >>> truth = np.array([[4], [4], [4]])
        >>> worse = ImageAreas(np.array(["c", "b", "a"]), truth - 2, truth - 2, truth)  # IoU 2 / 4 everywhere
        >>> better = ImageAreas(np.array(["a", "b", "c"]), truth - 1, truth - 1, truth)  # IoU 3 / 4 everywhere
        >>> difference_interval([resampled_scores(worse)], [resampled_scores(better)])
        (0.25, 0.25)
    """
    return _interval(np.mean(row, axis=0) - np.mean(baseline, axis=0))


def _draws(images: int, *, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image was drawn, (b, n) at a time."""
    if resamples < 1 or images < 1:
        raise ValueError(f"resamples and the number of images must be 1 or more, got {resamples} and {images}")
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // images)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)


def _interval(scores: Scores) -> Interval:
    """The middle 95 % of the draws that have a score."""
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return float("nan"), float("nan")
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
