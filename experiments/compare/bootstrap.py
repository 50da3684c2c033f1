"""Paired bootstrap over test images: how far a difference of two rows may be owed to the choice of images.

The images of a test set are drawn again with replacement, the same draw for both rows; each run's mIoU is worked out
anew from the summed areas, the seeds of a row are averaged, and the difference is taken. The interval holds the middle
95 % of the differences (Efron's percentile interval). It speaks of the test images alone: the trained networks are held
fixed, so what another seed would give is told by the standard deviation over seeds and not by this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from beyondpixel.experiments.compare.areas import Areas, iou_per_class, mean_iou

RESAMPLES = 5000
LEVEL = 0.95
SEED = 0
DRAWS_AT_ONCE = 500

Interval = tuple[float, float]
Scores = NDArray[np.float64]


def resampled_scores(
    areas: Areas, *, class_index: int | None = None, resamples: int = RESAMPLES, seed: int = SEED
) -> Scores:
    """The score of one run on test sets drawn again from its own.

    The draws depend on the number of images and the seed alone, so those of two runs on the same images are paired.

    Args:
        areas: of n images.
        class_index: the class whose IoU is the score; None for mIoU.
        resamples: how often to draw.
        seed: of the draws.

    Returns:
        (resamples,) scores in 0..1; NaN where a draw has nothing of the class.
    """
    arrays = [array.astype(np.float64) for array in (areas.intersection, areas.predicted, areas.truth)]
    scores = []
    for times in _draws(len(areas.ids), resamples, seed):
        sums = [times @ array for array in arrays]  # (draws, C)
        scores.append(mean_iou(*sums) if class_index is None else iou_per_class(*sums)[:, class_index])
    return np.concatenate(scores)


def difference_interval(first: Sequence[Scores], second: Sequence[Scores]) -> Interval | None:
    """The interval of (mean over the second's seeds) − (mean over the first's), images resampled in pairs.

    Args:
        first: from :func:`resampled_scores`, one a seed, of the baseline row.
        second: one a seed, of the other row, on the same images.

    Returns:
        Lower and upper end, on the scale 0..1; None if no draw has a score for both.

    Example:
        >>> one = np.ones((4, 2), dtype=np.int64)
        >>> worse = Areas(("a", "b", "c", "d"), 2 * one, 4 * one, 4 * one)  # IoU 2 / 6 everywhere
        >>> better = Areas(("a", "b", "c", "d"), 3 * one, 4 * one, 4 * one)  # IoU 3 / 5 everywhere
        >>> ends = difference_interval([resampled_scores(worse)], [resampled_scores(better)])
        >>> [round(end, 4) for end in ends]
        [0.2667, 0.2667]
    """
    differences = np.mean(second, axis=0) - np.mean(first, axis=0)
    if np.isnan(differences).all():
        return None
    low, high = np.nanquantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _draws(count: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each of `count` images is drawn: (some, count) at a time, so that large test sets fit into memory."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, DRAWS_AT_ONCE):
        rows = min(DRAWS_AT_ONCE, resamples - start)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
