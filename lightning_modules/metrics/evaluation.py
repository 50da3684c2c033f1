"""All scores of an evaluation, from one pass over the set."""

from collections.abc import Collection, Sequence
from itertools import chain, zip_longest
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from beyondpixel.lightning_modules.metrics.boundary_f import BoundaryFScore
from beyondpixel.lightning_modules.metrics.boundary_iou import BoundaryIoU
from beyondpixel.lightning_modules.metrics.confusion import SegmentationScores, iou_per_class
from beyondpixel.lightning_modules.metrics.labels import image_areas
from beyondpixel.lightning_modules.metrics.object_size import ObjectSizeScores
from beyondpixel.lightning_modules.metrics.trimap import TrimapScores


class ImageCounts(NamedTuple):
    """Areas of each image, (n, C) int64, in the data's order; the boundaries' are None if they were not scored."""

    id: list[str]
    intersection: NDArray[np.int64]
    predicted: NDArray[np.int64]
    truth: NDArray[np.int64]
    boundary_intersection: NDArray[np.int64] | None
    boundary_union: NDArray[np.int64] | None


class EvaluationScores(nn.Module):
    """The confusion matrix, where asked the scores of structure, and the areas of each image.

    Args:
        num_classes: C, at least 2.
        ignore_index: truth label of pixels that do not count.
        class_names: C distinct names for :meth:`summary`; the class numbers if None.
        structure: whether to score boundaries, bands around them and objects by size as well.

    Example:
        >>> scores = EvaluationScores(2, class_names=["road", "car"], structure=True)
        >>> masks = torch.tensor([[[0, 0, 1, 1]]])
        >>> scores.update(masks, masks, ids=["a"])
        >>> list(scores.summary())[:6]
        ['mIoU', 'pixel_accuracy', 'mean_accuracy', 'frequency_weighted_IoU', 'IoU/road', 'IoU/car']
        >>> scores.per_image().truth.tolist()
        [[2, 2]]
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        *,
        structure: bool = False,
    ) -> None:
        super().__init__()
        self.confusion = SegmentationScores(num_classes, ignore_index, class_names)
        names = self.confusion.class_names
        self.boundary_iou = BoundaryIoU(num_classes, ignore_index, names) if structure else None
        self.boundary_f = BoundaryFScore(num_classes, ignore_index, names) if structure else None
        self.trimap = TrimapScores(num_classes, ignore_index) if structure else None
        self.object_size = ObjectSizeScores(num_classes, ignore_index) if structure else None
        self._ids: list[str] = []
        self._areas: list[Tensor] = []  # (3 or 5, N, C) of each batch

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.confusion.num_classes)

    @property
    def class_names(self) -> list[str]:
        """Their names."""
        return self.confusion.class_names

    def _parts(self) -> "list[SegmentationScores | BoundaryIoU | BoundaryFScore | TrimapScores | ObjectSizeScores]":
        parts = (self.confusion, self.boundary_iou, self.boundary_f, self.trimap, self.object_size)
        return [part for part in parts if part is not None]

    def update(self, preds: Tensor, target: Tensor, ids: Sequence[str] | None = None) -> None:
        """Add a batch.

        Args:
            preds: (N, H, W) integer classes.
            target: (N, H, W) integer labels: 0..C-1 or ``ignore_index``.
            ids: N names of the images; without them :meth:`per_image` knows nothing.

        Raises:
            ValueError: if shapes differ or a label is out of range.
        """
        for part in self._parts():
            part.update(preds, target)
        if ids is not None:
            areas = image_areas(
                preds, target, num_classes=self.num_classes, ignore_index=cast(int, self.confusion.ignore_index)
            )
            if self.boundary_iou is not None:
                areas = torch.cat([areas, self.boundary_iou.latest])
            self._areas.append(areas)
            self._ids += ids

    def reset(self) -> None:
        """Forget everything."""
        for part in self._parts():
            part.reset()
        self._ids, self._areas = [], []

    def summary(self, unprinted_classes: Collection[str] = ()) -> dict[str, Tensor]:
        """Every score by name, each a float64 scalar in 0..1 or NaN.

        Collective in a distributed run: every process must call it.

        Args:
            unprinted_classes: classes that are trained and scored, but left out of the published mean: adds
                ``mIoU_<k>``, the mean over the other k classes' IoU.

        Raises:
            ValueError: if there is no class of such a name.
        """
        unknown = sorted(set(unprinted_classes) - set(self.class_names))
        if unknown:
            raise ValueError(f"unprinted_classes must be among {self.class_names}, got {unknown}")
        scores: dict[str, Tensor] = {}
        for part in self._parts():
            scores.update(part.summary())
        if unprinted_classes:
            printed = [index for index, name in enumerate(self.class_names) if name not in unprinted_classes]
            scores[f"mIoU_{len(printed)}"] = iou_per_class(self.confusion.compute())[printed].nanmean()
        return scores

    def per_image(self) -> ImageCounts | None:
        """Areas of each image of the whole set; None if images have no distinct ids.

        Images were dealt out to the processes in turn, and are put back in that order. What was there twice to even the
        processes out is in it once. Collective in a distributed run: every process must call it.
        """
        rows = 3 if self.boundary_iou is None else 5
        none = np.zeros((rows, 0, self.num_classes), dtype=np.int64)
        own = (self._ids, np.concatenate([none, *(areas.cpu().numpy() for areas in self._areas)], axis=1))
        shares = [own]
        if dist.is_available() and dist.is_initialized():
            shares = [own] * dist.get_world_size()
            dist.all_gather_object(shares, own)
        if not any(ids for ids, _ in shares):
            return None
        if any(len(set(ids)) < len(ids) for ids, _ in shares):
            rank_zero_warn("The areas of each image are not kept, because two images of the set have the same id.")
            return None
        areas_of: dict[str, NDArray[np.int64]] = {}
        for name, areas in filter(
            None, chain(*zip_longest(*(zip(i, a.swapaxes(0, 1), strict=True) for i, a in shares)))
        ):
            areas_of.setdefault(name, areas)  # a filler comes after the image that it repeats
        stacked = np.stack(list(areas_of.values()), axis=1)
        boundary = (stacked[3], stacked[4]) if rows == 5 else (None, None)
        return ImageCounts(list(areas_of), stacked[0], stacked[1], stacked[2], *boundary)
