"""Pixel counts of each test image on disk, so that scores can be resampled without another evaluation."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run.folder import replacing

COUNTS = ("intersection", "predicted", "target")
BOUNDARY_COUNTS = ("boundary_intersection", "boundary_union")
REMEDY = "remove it, or test the run again to renew it"


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """Pixel counts of each image and class, (n, C) int64 each; ignored pixels are not counted.

    IoU of class c over any subset of the images is ΣI/(ΣP + ΣT − ΣI), mIoU its mean over the classes whose union is not
    empty.

    Attributes:
        id: (n,) str, distinct, in the data's order.
        intersection: I, predicted as the class and labeled so.
        predicted: P, predicted as the class.
        target: T, labeled as the class.
        boundary_intersection: numerator of boundary IoU, or None where boundaries were not scored.
        boundary_union: its denominator.

    Raises:
        ValueError: if shapes do not agree or an id occurs twice.

    Example:
        >>> arrays = np.array([[[3, 0], [1, 2]], [[4, 0], [2, 2]], [[3, 1], [1, 3]]])
        >>> counts = ImageCounts(np.array(["a", "b"]), *arrays)
        >>> counts.iou_per_class(), counts.mean_iou()  # 4/6 and 2/4
        (array([0.66666667, 0.5       ]), 0.5833333333333333)
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp(), "test_images.npz")
        >>> counts.save(file)
        >>> ImageCounts.load(file).id.tolist()
        ['a', 'b']
    """

    id: NDArray[np.str_]
    intersection: NDArray[np.int64]
    predicted: NDArray[np.int64]
    target: NDArray[np.int64]
    boundary_intersection: NDArray[np.int64] | None = None
    boundary_union: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        distinct = len(set(self.id.ravel().tolist()))
        if self.id.ndim != 1 or distinct != len(self.id):
            raise ValueError(
                f"id must be one-dimensional with distinct entries, got {distinct} distinct of {self.id.size} in the "
                f"shape {self.id.shape}"
            )
        expected = (len(self.id), int(self.target.shape[-1]) if self.target.ndim else 0)
        for name, counts in self._arrays().items():
            if name != "id" and counts.shape != expected:
                raise ValueError(f"{name} must have the shape (images, classes) = {expected}, got {counts.shape}")

    def __len__(self) -> int:
        return len(self.id)

    @property
    def union(self) -> NDArray[np.int64]:
        """(n, C): P + T − I."""
        return self.predicted + self.target - self.intersection

    def iou_per_class(self) -> NDArray[np.float64]:
        """(C,) over all images, in 0..1; NaN for a class that is in none of them."""
        return iou_per_class(self.intersection.sum(axis=0), self.union.sum(axis=0))

    def mean_iou(self) -> float:
        """The mIoU over all images, in 0..1; NaN if no class is in any of them."""
        return float(mean_iou(self.intersection.sum(axis=0), self.union.sum(axis=0)))

    def save(self, path: str | Path) -> None:
        """Write a compressed NumPy archive atomically."""
        with replacing(Path(path)) as file:
            np.savez_compressed(file, **self._arrays())

    @classmethod
    def load(cls, path: str | Path) -> ImageCounts:
        """Read a file that `save` wrote.

        Raises:
            UserError: if there is no such file, it cannot be read, it lacks an array, or its arrays do not fit
                together.
        """
        arrays = read_arrays(path, required=("id", *COUNTS))
        try:
            counts = {
                name: arrays[name].astype(np.int64, casting="safe")
                for name in (*COUNTS, *BOUNDARY_COUNTS)
                if name in arrays
            }
            return cls(arrays["id"].astype(str), **counts)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: {error}; {REMEDY}") from error

    def _arrays(self) -> dict[str, Any]:
        return {name: array for name, array in vars(self).items() if array is not None}


def read_arrays(path: str | Path, required: tuple[str, ...]) -> dict[str, NDArray[np.generic]]:
    """Read a NumPy archive that a test wrote into a run folder.

    Raises:
        UserError: if there is no such file, it cannot be read, or an array is missing.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: a run's test writes it; test the run again") from error
    # raised for a file that is truncated, changed, of another format, or contains Python objects
    except (OSError, EOFError, ValueError, TypeError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); {REMEDY}") from error
    missing = [name for name in required if name not in arrays]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: expected {', '.join(required)}; {REMEDY}")
    return arrays


def iou_per_class(intersection: NDArray[np.generic], union: NDArray[np.generic]) -> NDArray[np.float64]:
    """Intersection over union of summed counts, (..., C) in 0..1; NaN for a class without a union.

    Example:
        >>> iou_per_class(np.array([1, 0, 1]), np.array([4, 0, 1]))
        array([0.25,  nan, 1.  ])
    """
    iou: NDArray[np.float64] = np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union != 0)
    return iou


def mean_iou(intersection: NDArray[np.generic], union: NDArray[np.generic]) -> NDArray[np.float64]:
    """Mean over the classes with a union: (..., C) sums to (...,) in 0..1; NaN where there is no such class.

    Example:
        >>> mean_iou(np.array([1, 0, 3]), np.array([2, 0, 4])).item()
        0.625
    """
    iou = iou_per_class(intersection, union)
    count = (~np.isnan(iou)).sum(axis=-1)
    total = np.nansum(iou, axis=-1)
    mean: NDArray[np.float64] = np.divide(total, count, out=np.full(count.shape, np.nan), where=count != 0)
    return mean
