"""Pixel counts of each image, from which every ratio over any subset of images can be recomputed."""

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

from beyondpixel.lightning_modules.metrics.boundary_iou import boundary_pixel_counts
from beyondpixel.lightning_modules.metrics.counts import checked_labels, pixels_per_class

Counts = NDArray[np.int64]


class ImageCounts(NamedTuple):
    """Pixel counts of n images, (n, C) int64, in the data's order; counts of boundaries are None if not counted."""

    id: list[str]
    intersection: Counts
    predicted: Counts
    target: Counts
    boundary_intersection: Counts | None
    boundary_union: Counts | None


class PixelCountsPerImage(Metric):
    """Pixels of each class in each image: correct, predicted and true ones, and those of the boundary strips.

    Args:
        num_classes: C, at least 2.
        ignore_index: target label of pixels that are excluded.
        boundaries: whether to count the strips of `BoundaryIoU`, too.
        kwargs: further arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = PixelCountsPerImage(2)
        >>> metric.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 255]]]), ids=["a"])
        >>> counts = metric.compute()
        >>> counts.id, counts.intersection.tolist(), counts.predicted.tolist(), counts.target.tolist()
        (['a'], [[1, 1]], [[2, 1]], [[1, 2]])
    """

    full_state_update = False

    def __init__(self, num_classes: int, ignore_index: int = 255, *, boundaries: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.boundaries = boundaries
        self._ids: list[str] = []
        self._counts: list[Tensor] = []  # (3 or 5, N, C) of each batch

    def update(self, preds: Tensor, target: Tensor, ids: Sequence[str]) -> None:
        """Add a batch.

        Args:
            preds: (N, H, W) integer classes.
            target: (N, H, W) integer labels: 0..C-1 or `ignore_index`.
            ids: N names of the images.

        Raises:
            TypeError: if preds or target are not of integers.
            ValueError: if shapes differ, a label is out of range, or there are not N names.
        """
        if isinstance(ids, str) or len(ids) != len(target):
            raise ValueError(f"ids must be {len(target)} names, one for each image of target, got {ids!r}")
        classes, void = self.num_classes, self.ignore_index
        preds, target = checked_labels(preds, target, num_classes=classes, ignore_index=void)
        valid = target != void
        counts = [
            pixels_per_class(target, valid & (preds == target), classes),
            pixels_per_class(preds, valid, classes),
            pixels_per_class(target, valid, classes),
        ]
        if self.boundaries:
            counts += boundary_pixel_counts(preds, target, num_classes=classes, ignore_index=void)
        self._counts.append(torch.stack(counts))
        self._ids += ids

    def forward(self, preds: Tensor, target: Tensor, ids: Sequence[str]) -> ImageCounts | None:
        """Add a batch, and return the counts of its images; None if it is empty or two have the same id."""
        # the base's forward resets the metric in between and restores only states that are tensors
        self.update(preds, target, ids)
        return self._merged([(list(ids), self._counts[-1].cpu().numpy())])

    def compute(self) -> ImageCounts | None:
        """Return the counts of the whole set; None if there are no images or two have the same id.

        Images are distributed to the processes in turn, and their order is restored. Images that a distributed sampler
        repeats to balance the processes are included once. Collective in a distributed run: every process must call it.
        """
        empty = np.zeros((5 if self.boundaries else 3, 0, self.num_classes), dtype=np.int64)
        own = (self._ids, np.concatenate([empty, *(counts.cpu().numpy() for counts in self._counts)], axis=1))
        shares = [own]
        if dist.is_available() and dist.is_initialized():
            shares = [own] * dist.get_world_size()
            dist.all_gather_object(shares, own)
        return self._merged(shares)

    def _merged(self, shares: Sequence[tuple[list[str], Counts]]) -> ImageCounts | None:
        """Merge the processes' ids and (3 or 5, N, C) counts."""
        if any(len(set(ids)) < len(ids) for ids, _ in shares):
            rank_zero_warn("The pixel counts of each image are not kept, because two images have the same id.")
            return None
        of_process = [zip(ids, counts.swapaxes(0, 1), strict=True) for ids, counts in shares]
        counts_of: dict[str, Counts] = {}
        for name, counts in filter(None, chain(*zip_longest(*of_process))):
            counts_of.setdefault(name, counts)  # a repeated image comes after the image itself
        if not counts_of:
            return None
        stacked = np.stack(list(counts_of.values()), axis=1)
        boundary = (stacked[3], stacked[4]) if self.boundaries else (None, None)
        return ImageCounts(list(counts_of), stacked[0], stacked[1], stacked[2], *boundary)

    def reset(self) -> None:
        """Remove all images."""
        super().reset()
        self._ids, self._counts = [], []
