"""Complex wavelet mutual information loss."""

from typing import Literal

import torch
from torch import Tensor

from beyondpixel.losses.base import SegmentationLoss, Term
from beyondpixel.losses.functional.arguments import check_range, check_ridge
from beyondpixel.losses.functional.cwmi import log_det
from beyondpixel.losses.functional.steerable_pyramid import SteerablePyramid
from beyondpixel.losses.functional.target import has_valid


class CWMILoss(SegmentationLoss):
    r"""Complex wavelet mutual information loss of Lu, ICML 2025, the successor of RMI on oriented subbands.

    .. math:: L = \lambda L_\text{pixel} + \sum_l \frac1{NC} \sum_{n, c} \log \det M^{l, n, c}

    with M of `functional.cwmi_log_det` on the sigmoid of the logits, for each level l of a steerable pyramid. The
    published recipe has a class-balanced binary cross entropy as its pixel loss and trains the first epoch without the
    second term; here the pixel loss is an argument, and both terms count from the start.

    **A negative loss is normal**: a log determinant is bounded from below by the ridge only. `terms["pixel"]` and
    `terms["cwmi"]` show both terms separately. As with RMI, the second term alone rates the inverse of a prediction far
    better than noise, nearly as good as the prediction.

    Args:
        num_classes: C.
        levels: pyramid levels. Maps are padded with void to multiples of 2^levels, and must be larger than 2^levels.
        orientations: K, subbands per level; the published training script uses 12. The coarsest level needs 3 K
            positions, or 4 K in the real pyramid.
        complex: whether the pyramid is complex (True) or real (False).
        pixel_weight: λ in [0, 1].
        pixel_loss: "bce_mean", binary cross entropy, its mean over pixels and classes; "bce", summed over classes;
            "ce", softmax cross entropy; None, the second term alone.
        with_logits: whether preds are logits (True) or probabilities (False).
        ignore_index: label of void pixels, which are 0 in labels and probabilities alike.
        ridge: ξ, added to the covariance of the probabilities alone, as published.

    Attributes:
        jittered: number of matrices since `reset()` that were not positive definite, to which ξ was added (2⁻²⁴ of
            their largest diagonal entry if that is more). A class that is absent from an image is one on every level,
            and adds a constant.

    An image without valid pixels adds nothing to the second term, but counts as an image.

    Raises:
        ValueError: at construction for a value out of range or an unknown name, when called if shapes do not fit, a
            label is out of range or maps are too small for the levels.

    >>> loss = CWMILoss(num_classes=2, levels=2)
    >>> logits = torch.zeros(1, 2, 20, 30, requires_grad=True)
    >>> target = torch.zeros(1, 20, 30, dtype=torch.long)
    >>> target[:, 4:12, 4:12] = 1
    >>> loss(logits, target).backward()
    >>> sorted(loss.terms)
    ['cwmi', 'pixel']
    """

    jittered: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        levels: int = 4,
        orientations: int = 4,
        complex: bool = True,
        pixel_weight: float = 0.9,
        pixel_loss: Literal["bce", "bce_mean", "ce"] | None = "bce_mean",
        with_logits: bool = True,
        ignore_index: int = 255,
        ridge: float = 5e-4,
    ) -> None:
        check_range("pixel_weight", pixel_weight, 0, 1)
        check_ridge(ridge)
        super().__init__(
            num_classes,
            term_names=("cwmi",),
            pixel_loss=pixel_loss,
            with_logits=with_logits,
            ignore_index=ignore_index,
        )
        self.pyramid = SteerablePyramid(levels, orientations, complex)
        self.pixel_weight = pixel_weight
        self.ridge = ridge
        self.add_state("jittered", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _batch_terms(self, preds: Tensor, target: Tensor) -> dict[str, Term]:
        probs = preds.to(torch.promote_types(preds.dtype, torch.float32))
        probs = probs.sigmoid() if self.with_logits else probs
        values, jittered = log_det(probs, target, self.pyramid, self.ridge)
        self.jittered = self.jittered + jittered
        total = torch.where(has_valid(target)[:, None], values, 0).sum()
        terms = {"cwmi": (total, total.new_full((), values[0].numel()))}
        if self.pixel_loss is not None:
            terms["pixel"] = self._pixel_term(preds, target)
        return terms

    def _combine(self, terms: dict[str, Tensor]) -> Tensor:
        if self.pixel_loss is None:
            return terms["cwmi"]
        return self.pixel_weight * terms["pixel"] + terms["cwmi"]
