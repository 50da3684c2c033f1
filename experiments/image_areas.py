"""What a score over a set is made of, image by image, on disk: resampling images needs no second evaluation."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beyondpixel.experiments.errors import UserError

AREAS = ("intersection", "predicted", "truth")
BOUNDARY_AREAS = ("boundary_intersection", "boundary_union")


@dataclass(frozen=True, eq=False)
class ImageAreas:
    """Pixels of each image and class, (n, C) int64 each; void pixels are in none.

    IoU of class c over any subset of the images is ΣI/(ΣP + ΣT − ΣI), mIoU its mean over the classes whose union is not
    empty.

    Attributes:
        id: (n,) str, distinct, in the data's order.
        intersection: I, predicted as the class and truly so.
        predicted: P, predicted as the class.
        truth: T, truly of the class.
        boundary_intersection: numerator of boundary IoU, or None where boundaries were not scored.
        boundary_union: its denominator.

    Raises:
        ValueError: if shapes do not agree or an id occurs twice.

    Example:
        >>> areas = ImageAreas(np.array(["a", "b"]), *np.array([[[3, 0], [1, 2]], [[4, 0], [2, 2]], [[3, 1], [1, 3]]]))
        >>> areas.mean_iou()  # 4/6 and 2/4
        0.5833333333333333
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp(), "test_images.npz")
        >>> areas.save(file)
        >>> ImageAreas.load(file).id.tolist()
        ['a', 'b']
    """

    id: NDArray[np.str_]
    intersection: NDArray[np.int64]
    predicted: NDArray[np.int64]
    truth: NDArray[np.int64]
    boundary_intersection: NDArray[np.int64] | None = None
    boundary_union: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.id.ndim != 1 or len(set(self.id.tolist())) != len(self.id):
            raise ValueError(f"id must be one-dimensional with distinct entries, got {self.id.tolist()}")
        for name in (*AREAS, *BOUNDARY_AREAS):
            areas = getattr(self, name)
            if areas is not None and areas.shape != (len(self.id), self.num_classes):
                raise ValueError(
                    f"{name} must have the shape (images, classes) = ({len(self.id)}, {self.num_classes}), "
                    f"got {areas.shape}"
                )

    def __len__(self) -> int:
        return len(self.id)

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.intersection.shape[-1])

    @property
    def union(self) -> NDArray[np.int64]:
        """(n, C): P + T − I."""
        return self.predicted + self.truth - self.intersection

    def mean_iou(self) -> float:
        """The mIoU over all images, in 0..1; NaN if no class is in any of them."""
        return float(mean_iou(self.intersection.sum(axis=0), self.union.sum(axis=0)))

    def in_order_of(self, ids: Sequence[str]) -> ImageAreas:
        """The same areas with the images in another order.

        Args:
            ids: the same ids.

        Raises:
            UserError: if they are not the same.
        """
        place = {name: index for index, name in enumerate(self.id.tolist())}
        others = sorted(place.keys() ^ set(ids))
        if others:
            raise UserError(
                f"two runs can be compared image by image only on the same images: {len(others)} are in one of them "
                f"only, e.g. {others[0]}; test both on the same set"
            )
        order = [place[name] for name in ids]
        arrays = {name: getattr(self, name) for name in ("id", *AREAS, *BOUNDARY_AREAS)}
        return ImageAreas(**{name: array[order] for name, array in arrays.items() if array is not None})

    def save(self, path: str | Path) -> None:
        """Write a compressed NumPy archive; a reader sees the old or the new one, never a part."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in ("id", *AREAS, *BOUNDARY_AREAS)}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})
            Path(temporary).chmod(0o644)  # mkstemp makes files that only their owner can read
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path) -> ImageAreas:
        """Read what `save` wrote.

        Raises:
            UserError: if there is no such file, or it lacks an array.
        """
        try:
            with np.load(path) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except FileNotFoundError as error:
            raise UserError(
                f"{path} is not there: expected the areas of each image, which a run's test writes; test the run again"
            ) from error
        missing = [name for name in ("id", *AREAS) if name not in arrays]
        if missing:
            raise UserError(f"{path} lacks {', '.join(missing)}: expected an archive that a run's test wrote")
        return cls(**{name: arrays[name] for name in ("id", *AREAS, *BOUNDARY_AREAS) if name in arrays})


def mean_iou(intersection: NDArray[np.generic], union: NDArray[np.generic]) -> NDArray[np.float64]:
    """Mean over the classes with a union: (..., C) sums to (...,) in 0..1; NaN where there is no such class.

    Example:
        >>> mean_iou(np.array([1, 0, 3]), np.array([2, 0, 4]))
        array(0.625)
    """
    present = union != 0
    iou = np.divide(intersection, union, out=np.zeros(union.shape), where=present)
    count = present.sum(axis=-1)
    mean: NDArray[np.float64] = np.divide(iou.sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count != 0)
    return mean
