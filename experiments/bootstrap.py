"""How far a score would move with other test images: the bootstrap over images (Efron 1979), percentile intervals.

Images are drawn with replacement, as many as there are; areas are summed over the draw and mIoU is taken of the sums.
For two runs the same draw serves both, so what makes an image hard for either cancels out of their difference. This is
the variation over test images alone: that over seeds is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.image_areas import ImageAreas, mean_iou

_DRAWS_AT_ONCE = 2**22  # 32 MB of image numbers


def bootstrap_miou(
    areas: ImageAreas, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of one run's mIoU.

    Args:
        areas: of the run.
        resamples: number of draws.
        seed: of the draws: the same seed and images give the same interval.
        level: share of the draws within the interval.

    Returns:
        Lower and upper end, in 0..1; NaN where no image holds any class.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> areas = ImageAreas(np.array(["a", "b"]), *np.array([[[3], [1]], [[4], [2]], [[3], [3]]]))
        >>> low, high = bootstrap_miou(areas)
        >>> low, areas.mean_iou(), high  # of image b alone, of both, of image a alone
        (0.25, 0.5, 0.75)
    """
    scores = [_mean_iou(areas, counts) for counts in _draws(len(areas), resamples=resamples, seed=seed)]
    return _interval(np.concatenate(scores), level)


def bootstrap_difference(
    areas: ImageAreas,
    baseline_areas: ImageAreas,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Difference of two runs' mIoU and its interval, from the same draws of images for both.

    Args:
        areas: of the run.
        baseline_areas: of the run that it is compared with, on the same images, in any order.
        resamples: number of draws.
        seed: of the draws.
        level: share of the draws within the interval.

    Returns:
        The run's mIoU minus the baseline's over all images, and the lower and upper end of its interval.

    Raises:
        ValueError: if an argument is out of range.
        UserError: if the images or the classes are not the same.

    Example:
        >>> truth = np.array([[4], [4], [4]])
        >>> better = ImageAreas(np.array(["a", "b", "c"]), truth - 1, truth - 1, truth)
        >>> worse = ImageAreas(np.array(["c", "b", "a"]), truth - 2, truth - 2, truth)
        >>> bootstrap_difference(better, worse)
        (0.25, 0.25, 0.25)
    """
    if areas.num_classes != baseline_areas.num_classes:
        raise UserError(
            f"two runs can be compared only on the same classes, got {areas.num_classes} and "
            f"{baseline_areas.num_classes} classes"
        )
    baseline_areas = baseline_areas.in_order_of(areas.id.tolist())
    differences = [
        _mean_iou(areas, counts) - _mean_iou(baseline_areas, counts)
        for counts in _draws(len(areas), resamples=resamples, seed=seed)
    ]
    return areas.mean_iou() - baseline_areas.mean_iou(), *_interval(np.concatenate(differences), level)


def _draws(images: int, *, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image was drawn, (b, n) at a time."""
    if resamples < 1 or images < 1:
        raise ValueError(f"resamples and the number of images must be 1 or more, got {resamples} and {images}")
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // images)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)


def _mean_iou(areas: ImageAreas, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    # float64 products use the fast matrix multiplication, and are exact up to 2^53 pixels
    return mean_iou(counts @ areas.intersection.astype(np.float64), counts @ areas.union.astype(np.float64))


def _interval(scores: NDArray[np.float64], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    scores = scores[~np.isnan(scores)]  # a draw of nothing but images without truth
    if not len(scores):
        return float("nan"), float("nan")
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
