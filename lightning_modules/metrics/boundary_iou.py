"""Boundary IoU (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from beyondpixel.lightning_modules.metrics.counts import CountMetric, pixels_per_class, ratio
from beyondpixel.lightning_modules.metrics.neighborhoods import dilate, edges, with_void


def boundary_pixel_counts(
    preds: Tensor, target: Tensor, *, num_classes: int, dilation: float = 0.02, ignore_index: int = 255
) -> Tensor:
    """Count intersection and union of the classes' boundary strips in each image (equation 2 of the paper).

    The strip of a class consists of its pixels at most d away (chessboard metric) from a pixel that is not of the class
    or from the outside of the image: the class's mask without its d-fold erosion by a 3x3 square, as in the authors'
    code. d is `dilation` times the image's diagonal, rounded (half to even), and at least 1. Void pixels are excluded
    from the prediction as well, so edges to void are edges in both.

    Args:
        preds: (N, H, W) integer classes.
        target: (N, H, W) integer labels: 0..C-1 or `ignore_index`.
        num_classes: C.
        dilation: width of the strips as a fraction of the diagonal.
        ignore_index: label of void pixels.

    Returns:
        (2, N, C) int64: intersection, union.

    Example:
        >>> target = torch.zeros(1, 5, 5, dtype=torch.long)
        >>> preds = target.clone()
        >>> preds[0, 0, 0] = 1  # of the 16 pixels at the border
        >>> boundary_pixel_counts(preds, target, num_classes=2).tolist()
        [[[15, 0]], [[17, 1]]]
    """
    target = target.long()  # in a narrow dtype such as uint8, ignore_index may wrap around
    height, width = target.shape[-2:]
    distance = max(1, round(dilation * (height**2 + width**2) ** 0.5))
    valid = target != ignore_index
    strips = []
    for labels in (preds, target):
        near = edges(with_void(labels, valid, num_classes), corners=True, image_border=True)
        strips.append(torch.from_numpy(dilate(near, distance - 1)).to(target.device) & valid)
    in_preds, in_target = strips
    intersection = pixels_per_class(target, in_preds & in_target & (preds == target), num_classes)
    predicted = pixels_per_class(preds, in_preds, num_classes)
    true = pixels_per_class(target, in_target, num_classes)
    return torch.stack([intersection, predicted + true - intersection])


class BoundaryIoU(CountMetric):
    """IoU of the strips along the classes' boundaries; counts are summed over the whole set before the ratio.

    Unlike IoU it does not grow with an object's size, because the inside of a large object, which is easy, is
    excluded. Strips are those of `boundary_pixel_counts`; images in one batch have the diagonal of the padded size.

    Args:
        num_classes: C, at least 2.
        ignore_index: target label of pixels that are excluded.
        class_names: C distinct names; the class numbers if None.
        dilation: width of the strips as a fraction of the image's diagonal; the paper's is 0.02.
        kwargs: further arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: if `dilation` is not positive.

    Example:
        >>> metric = BoundaryIoU(2)
        >>> target = torch.zeros(1, 5, 5, dtype=torch.long)
        >>> metric.update(target, target)
        >>> metric.compute()["boundary_IoU"].item()
        1.0
    """

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
        super().__init__(num_classes, ignore_index, class_names, shape=(2, num_classes), **kwargs)
        self.dilation = dilation

    def count(self, preds: Tensor, target: Tensor) -> Tensor:
        """Count intersection and union of the strips of a batch."""
        return boundary_pixel_counts(
            preds, target, num_classes=self.num_classes, dilation=self.dilation, ignore_index=self.ignore_index
        ).sum(dim=1)

    def compute(self) -> dict[str, Tensor]:
        """Return `boundary_IoU`, the mean over the classes present, and `boundary_IoU/<class>`."""
        iou = ratio(*self.counts)
        return {"boundary_IoU": iou.nanmean(), **self.named("boundary_IoU", iou)}
