"""Boundary IoU (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from beyondpixel.lightning_modules.metrics.counting import CountingScore, ratio
from beyondpixel.lightning_modules.metrics.labels import pixels_per_class
from beyondpixel.lightning_modules.metrics.neighbourhoods import beside_other_label, dilate


def boundary_areas(
    preds: Tensor, target: Tensor, *, num_classes: int, dilation: float = 0.02, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """Intersection and union of the classes' boundary strips, image by image (equation 2 of the paper).

    The strip of a class are its pixels from which a pixel that is not of the class, or the outside of the image, is at
    most d away in the chessboard metric: the class's mask without its d-fold erosion by a 3x3 square, as in the
    authors' code. d is ``dilation`` times the image's diagonal, rounded (half to even), and at least 1. Void pixels are
    taken out of the prediction as well, so edges to void are edges in both.

    Args:
        preds: (N, H, W) integer classes.
        target: (N, H, W) integer labels: 0..C-1 or ``ignore_index``.
        num_classes: C.
        dilation: share of the diagonal.
        ignore_index: label of void pixels.

    Returns:
        Intersection and union, each (N, C) int64.

    Example:
        >>> target = torch.zeros(1, 5, 5, dtype=torch.long)
        >>> preds = target.clone()
        >>> preds[0, 0, 0] = 1  # of the 16 pixels at the border
        >>> [areas.tolist() for areas in boundary_areas(preds, target, num_classes=2)]
        [[[15, 0]], [[17, 1]]]
    """
    height, width = target.shape[-2:]
    distance = max(1, round(dilation * (height**2 + width**2) ** 0.5))
    valid = target != ignore_index
    strips = []
    for labels in (preds, target):
        edges = beside_other_label(labels.where(valid, num_classes), image_border=True)
        strips.append(dilate(edges, distance - 1) & valid)
    in_preds, in_target = strips
    intersection = pixels_per_class(target, in_preds & in_target & (preds == target), num_classes)
    predicted = pixels_per_class(preds, in_preds, num_classes)
    truth = pixels_per_class(target, in_target, num_classes)
    return intersection, predicted + truth - intersection


class BoundaryIoU(CountingScore):
    """IoU of the strips along the classes' boundaries: areas summed over the whole set, then one ratio a class.

    Unlike IoU it does not grow with an object's size: a large object's inside, which is easy, is left out. Per image
    and class the strips are those of :func:`boundary_areas`.

    Args:
        num_classes: C, at least 2.
        ignore_index: truth label of pixels that do not count.
        class_names: C names for :meth:`summary`; the class numbers if None.
        dilation: width of the strips as a share of the image's diagonal; the paper's is 0.02.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Attributes:
        latest: intersection and union of each image of the last batch, (2, N, C).

    Raises:
        ValueError: if ``dilation`` is not positive.

    Example:
        >>> score = BoundaryIoU(2)
        >>> target = torch.zeros(1, 5, 5, dtype=torch.long)
        >>> score.update(target, target)
        >>> score.summary()["boundary_IoU"].item()
        1.0
    """

    intersection: Tensor
    union: Tensor
    latest: Tensor

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        *,
        dilation: float = 0.02,
        **kwargs: Any,
    ) -> None:
        if dilation <= 0:
            raise ValueError(f"dilation must be a positive share of the image's diagonal, got {dilation}")
        shape = (num_classes,)
        super().__init__(num_classes, ignore_index, shapes={"intersection": shape, "union": shape}, **kwargs)
        self.dilation = dilation
        self.class_names = [str(index) for index in range(num_classes)] if class_names is None else list(class_names)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the strips' areas of a batch, (N, H, W) each; images of one batch count with their padding's size."""
        self.check(preds, target)
        self.latest = torch.stack(
            boundary_areas(
                preds,
                target,
                num_classes=self.num_classes,
                dilation=self.dilation,
                ignore_index=self.ignore_index,
            )
        )
        intersection, union = self.latest.sum(dim=1)
        self.intersection += intersection
        self.union += union

    def compute(self) -> Tensor:
        """(C,) float64 in 0..1; NaN for a class that is in neither truth nor prediction."""
        return ratio(self.intersection, self.union)

    def summary(self) -> dict[str, Tensor]:
        """``boundary_IoU``, the mean over the classes that are there, and ``boundary_IoU/<class>``."""
        scores: Tensor = self.compute()
        per_class = {f"boundary_IoU/{name}": score for name, score in zip(self.class_names, scores, strict=True)}
        return {"boundary_IoU": scores.nanmean(), **per_class}
