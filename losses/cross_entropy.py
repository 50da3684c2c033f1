"""Pixel-wise losses, the baselines of the papers."""

from typing import Literal

from beyondpixel.losses.base import SegmentationLoss
from beyondpixel.losses.functional.arguments import check_choice, check_softmax_classes
from beyondpixel.losses.functional.cross_entropy import REDUCTIONS


class CrossEntropyLoss(SegmentationLoss):
    """Softmax cross entropy, the mean over the valid pixels; see `functional.cross_entropy`.

    Args:
        num_classes: C, at least 2; see `BinaryCrossEntropyLoss` for one.
        with_logits: whether preds are logits (True) or probabilities that sum to 1 over the classes (False).
        ignore_index: label of void pixels.

    >>> import torch
    >>> loss = CrossEntropyLoss(2)
    >>> loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]]))  # log 2
    tensor(0.6931)
    """

    def __init__(self, num_classes: int, *, with_logits: bool = True, ignore_index: int = 255) -> None:
        check_softmax_classes(num_classes)
        super().__init__(num_classes, pixel_loss="ce", with_logits=with_logits, ignore_index=ignore_index)


class BinaryCrossEntropyLoss(SegmentationLoss):
    """Binary cross entropy of each class against the rest; see `functional.binary_cross_entropy`.

    Args:
        num_classes: C.
        reduction: "class_sum", the sum over classes and mean over pixels of the RMI authors' baseline, or "mean", the
            mean over both, which is C times smaller.
        with_logits: whether preds are logits (True) or probabilities (False).
        ignore_index: label of void pixels.

    Raises:
        ValueError: if the reduction is unknown.

    >>> import torch
    >>> loss = BinaryCrossEntropyLoss(2, reduction="mean")
    >>> loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]]))  # log 2
    tensor(0.6931)
    """

    def __init__(
        self,
        num_classes: int,
        *,
        reduction: Literal["class_sum", "mean"] = "class_sum",
        with_logits: bool = True,
        ignore_index: int = 255,
    ) -> None:
        check_choice("reduction", reduction, REDUCTIONS)
        pixel_loss = "bce_mean" if reduction == "mean" else "bce"
        super().__init__(num_classes, pixel_loss=pixel_loss, with_logits=with_logits, ignore_index=ignore_index)
