"""Per-image areas of a run's evaluation: what mIoU over any choice of images can be worked out from."""

from __future__ import annotations

from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run_folder import RunFolder

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Areas:
    """Pixel counts of each image and class; void pixels are in none of them.

    Attributes:
        ids: (n,) names of the images, sorted.
        intersection: (n, C) pixels that are of the class and predicted so.
        predicted: (n, C) pixels predicted so.
        truth: (n, C) pixels of the class.
    """

    ids: tuple[str, ...]
    intersection: Counts
    predicted: Counts
    truth: Counts


def read_areas(run: RunFolder, stage: str) -> Areas | None:
    """The areas that an evaluation of a run left in its folder; None where there are none.

    Args:
        run: a run.
        stage: `test` or `val`.

    Raises:
        UserError: if the file cannot be read or its arrays do not fit together.
    """
    file = run.path / f"{stage}_images.npz"
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            ids = arrays["id"].astype(str)
            counts = [arrays[name].astype(np.int64) for name in ("intersection", "predicted", "truth")]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{file} cannot be read ({error}); remove it, or test the run again to renew it") from error
    shapes = {array.shape for array in counts}
    if len(shapes) > 1 or counts[0].ndim != 2 or len(counts[0]) != len(ids) or len(set(ids)) < len(ids):
        raise UserError(
            f"{file}: expected n distinct ids and three arrays (n, C), got {len(set(ids))} distinct ids of {len(ids)} "
            f"and {', '.join(str(array.shape) for array in counts)}; test the run again to renew it"
        )
    order = np.argsort(ids)  # runs may have seen the images in different order, or on different ranks
    intersection, predicted, truth = (array[order] for array in counts)
    return Areas(tuple(ids[order].tolist()), intersection, predicted, truth)


def iou_per_class(
    intersection: NDArray[np.number], predicted: NDArray[np.number], truth: NDArray[np.number]
) -> NDArray[np.float64]:
    """Intersection over union from summed areas, NaN where a class is in neither truth nor prediction.

    Args:
        intersection, predicted, truth: (…, C) sums over images.

    Example:
        >>> iou_per_class(np.array([3, 0]), np.array([4, 0]), np.array([5, 0]))
        array([0.5, nan])
    """
    union = predicted + truth - intersection
    iou: NDArray[np.float64] = np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)
    return iou


def mean_iou(
    intersection: NDArray[np.number], predicted: NDArray[np.number], truth: NDArray[np.number]
) -> NDArray[np.float64]:
    """Mean of :func:`iou_per_class` over the classes that truth or prediction hold.

    Example:
        >>> mean_iou(np.array([3, 1, 0]), np.array([4, 4, 0]), np.array([5, 1, 0])).item()
        0.375
    """
    iou = iou_per_class(intersection, predicted, truth)
    known = ~np.isnan(iou)
    count = known.sum(-1)
    total = np.where(known, iou, 0.0).sum(-1)
    mean: NDArray[np.float64] = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return mean
