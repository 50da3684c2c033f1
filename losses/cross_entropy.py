"""Pixel by pixel losses, the baselines of the papers."""

from typing import Literal

from torch import Tensor

from beyondpixel.losses.base import SegmentationLoss, Term
from beyondpixel.losses.functional.cross_entropy import REDUCTIONS, cross_entropy_sum, pixel_divisor
from beyondpixel.losses.functional.target import check_choice, num_valid, read_target
from beyondpixel.losses.ops.operators import bce_pool


class CrossEntropyLoss(SegmentationLoss):
    """Softmax cross entropy, the mean over the valid pixels; see `functional.cross_entropy`.

    Args:
        num_classes: C.
        with_logits: whether preds are logits (True) or probabilities that sum to 1 over the classes (False).
        ignore_index: label of void pixels.

    >>> import torch
    >>> loss = CrossEntropyLoss(2)
    >>> loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]]))  # log 2
    tensor(0.6931)
    """

    def __init__(self, num_classes: int, *, with_logits: bool = True, ignore_index: int = 255) -> None:
        super().__init__(num_classes, ignore_index=ignore_index, term_names=("pixel",))
        self.with_logits = with_logits

    def _batch_terms(self, preds: Tensor, target: Tensor) -> dict[str, Term]:
        target = read_target(
            preds, target, num_classes=self.num_classes, ignore_index=self.ignore_index, with_logits=self.with_logits
        )
        return {"pixel": Term(cross_entropy_sum(preds, target, with_logits=self.with_logits), num_valid(target))}

    def _combine(self, terms: dict[str, Tensor]) -> Tensor:
        return terms["pixel"]


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
        super().__init__(num_classes, ignore_index=ignore_index, term_names=("pixel",))
        self.reduction = reduction
        self.with_logits = with_logits

    def _batch_terms(self, preds: Tensor, target: Tensor) -> dict[str, Term]:
        target = read_target(
            preds, target, num_classes=self.num_classes, ignore_index=self.ignore_index, with_logits=self.with_logits
        )
        total, _, _ = bce_pool(preds, target, with_logits=self.with_logits)
        return {"pixel": Term(total, num_valid(target))}

    def _divide(self, name: str, term: Term) -> Tensor:
        return term.total / pixel_divisor(term.count, self.reduction, self.num_classes)

    def _combine(self, terms: dict[str, Tensor]) -> Tensor:
        return terms["pixel"]
