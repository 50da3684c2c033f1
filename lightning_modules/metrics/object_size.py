"""Mean IoU of small, medium and large objects."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beyondpixel.lightning_modules.metrics.counts import CountMetric, ratio
from beyondpixel.lightning_modules.metrics.neighborhoods import with_void

Labels = NDArray[np.integer]
Numbers = NDArray[np.int32]
SIZES = ("small", "medium", "large")


class ObjectSizeIoU(CountMetric):
    """Mean IoU by the size of objects, where an object is an 8-connected component of one class in the target.

    Objects are small below an area of 32² pixels, large from 96² on (COCO's bounds), else medium, at the evaluated
    size. Void is excluded from target and prediction before components are found. For each size and class:

    - a true pixel, found or not, counts for its object's size;
    - a wrongly predicted pixel belongs to a component of the prediction, and counts for the size of the object of the
      same class that this component covers most of (the larger of two covered equally); if it covers none, for the
      component's own size.

    IoU is found / (true + wrongly predicted), summed over the whole set; the mean is over the classes with a nonzero
    denominator. So a class with small objects in the prediction only counts as 0 among the small ones, like a class
    that is only predicted in mIoU.

    Args:
        num_classes: C, at least 2.
        ignore_index: target label of pixels that are excluded.
        class_names: C distinct names; the class numbers if None.
        bounds: smallest areas of medium and of large objects, in pixels.
        kwargs: further arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: if `bounds` are not two ascending positive numbers.

    Example:
        >>> target = torch.tensor([[[1, 0, 0, 0, 0, 0, 0, 0, 1, 1]]])
        >>> preds = torch.tensor([[[1, 1, 0, 0, 0, 0, 0, 0, 0, 1]]])
        >>> metric = ObjectSizeIoU(2, bounds=(2, 7))  # ones of area 1 and 2, zeros of area 7
        >>> metric.update(preds, target)
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}  # 1/2, 1/2, 6/8
        {'IoU_small': 0.5, 'IoU_medium': 0.5, 'IoU_large': 0.75}
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        *,
        bounds: tuple[int, int] = (32**2, 96**2),
        **kwargs: Any,
    ) -> None:
        if len(bounds) != 2 or not 0 < bounds[0] < bounds[1]:
            raise ValueError(f"bounds must be two areas in pixels, positive and ascending, got {bounds}")
        super().__init__(num_classes, ignore_index, class_names, shape=(3, len(SIZES), num_classes), **kwargs)
        self.bounds = bounds

    def count(self, preds: Tensor, target: Tensor) -> Tensor:
        """Count found, true and wrongly predicted pixels of a batch, for each size and class."""
        maps = [with_void(labels, target != self.ignore_index, self.num_classes) for labels in (preds, target)]
        counts = np.zeros(self.counts.shape, dtype=np.int64)
        for image_preds, image_target in zip(*maps, strict=True):
            _add_image(counts, image_preds, image_target, self.num_classes, self.bounds)
        return torch.from_numpy(counts)

    def compute(self) -> dict[str, Tensor]:
        """Return `IoU_small`, `IoU_medium` and `IoU_large`; NaN where there is no such object."""
        found, true, wrong = self.counts
        mean = ratio(found, true + wrong).nanmean(dim=1)
        return {f"IoU_{size}": value for size, value in zip(SIZES, mean, strict=True)}


def _add_image(
    counts: NDArray[np.int64], preds: Labels, target: Labels, num_classes: int, bounds: tuple[int, int]
) -> None:
    """Add the pixels of one image to (3, sizes, C) counts of found, true and wrong ones."""
    found, true, wrong = counts
    objects, classes, areas = components(target, num_classes)
    parts, part_classes, part_areas = components(preds, num_classes)
    right = preds == target

    sizes = np.digitize(areas, bounds)
    np.add.at(true, (sizes[1:], classes[1:]), areas[1:])
    hits = np.bincount(objects[right], minlength=len(areas))
    np.add.at(found, (sizes[1:], classes[1:]), hits[1:])

    part, covered, pixels = _overlaps(parts, objects, right)
    part_sizes = np.digitize(part_areas, bounds)
    # the last entry of a part is kept: the object it covers most of, the largest if equal
    order = np.lexsort((areas[covered], pixels))
    part_sizes[part[order]] = sizes[covered[order]]
    misses = part_areas - np.bincount(parts[right], minlength=len(part_areas))
    np.add.at(wrong, (part_sizes[1:], part_classes[1:]), misses[1:])


def _overlaps(parts: Numbers, objects: Numbers, where: NDArray[np.bool_]) -> tuple[Labels, Labels, Labels]:
    """Find the pairs of a part and an object that overlap, and their number of common pixels, among the given ones."""
    codes = np.where(where, parts * np.int64(objects.max() + 1) + objects, -1).ravel()
    # neighboring pixels mostly share a pair, and sorting runs of pixels is faster than sorting pixels
    starts = np.flatnonzero(np.diff(codes, prepend=-2))
    lengths = np.diff(starts, append=codes.size)
    pairs, run = np.unique(codes[starts], return_inverse=True)
    pixels = np.bincount(run, weights=lengths).astype(np.int64)
    part, covered = np.divmod(pairs, objects.max() + 1)
    return part[pairs >= 0], covered[pairs >= 0], pixels[pairs >= 0]


def components(labels: Labels, num_classes: int) -> tuple[Numbers, Labels, Labels]:
    """Find the 8-connected components of equal labels; labels from `num_classes` on are in none.

    Returns:
        (H, W) component number of each pixel, 0 for none; and class and area of each number (meaningless for 0).

    Example:
        >>> numbers, classes, areas = components(np.array([[1, 1, 0, 1, 9]]), num_classes=2)
        >>> numbers.tolist(), classes[1:].tolist(), areas[1:].tolist()
        ([[2, 2, 1, 3, 0]], [0, 1, 1], [1, 2, 1])
    """
    numbers = np.zeros(labels.shape, dtype=np.int32)
    classes = [np.zeros(1, dtype=np.int64)]
    known = 0
    for index in np.flatnonzero(np.bincount(labels.ravel(), minlength=num_classes)[:num_classes]):
        mask = labels == index
        count, of_class = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
        numbers += of_class
        np.add(numbers, known, out=numbers, where=mask)
        known += count - 1
        classes.append(np.full(count - 1, index))
    return numbers, np.concatenate(classes), np.bincount(numbers.ravel(), minlength=known + 1)
