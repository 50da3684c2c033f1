"""Region mutual information loss."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from beyondpixel.losses.base import SegmentationLoss, Term
from beyondpixel.losses.functional.arguments import check_choice, check_range
from beyondpixel.losses.functional.bound import RegionBound
from beyondpixel.losses.functional.target import has_valid

ABSENT_CLASSES = ("include", "skip")


class RMILoss(SegmentationLoss):
    r"""Region mutual information loss, Eq. 16 of Zhao et al., NeurIPS 2019.

    .. math:: L = \lambda L_\text{pixel} + (1 - \lambda) \frac1N \sum_{n} \sum_c -I_l^{n, c}

    with I_l of `functional.rmi_lower_bound` on the sigmoid of the logits. The defaults are those of the authors'
    training script. The logits must have the size of the labels.

    **A negative loss is normal**: -I_l is half the mean log eigenvalue of M, which decreases as predictions get better,
    to ½ log 2ξ per class (-3.45 with ξ = 5e-4). Log `terms["pixel"]` and `terms["rmi"]` separately, and choose
    checkpoints by a metric.

    **Covariances cannot distinguish a prediction from its inverse**: those of P and of 1 - P are equal up to a sign,
    which cancels in M. With DF 1, with "interp" and with "stride", both have the same loss; with "avg", due to its zero
    padding, the inverse is between the prediction and noise, with "max" close to noise. The pixel term decides which of
    the two is learned, so a network from scratch needs enough of it (λ, or some training without RMI).

    Args:
        num_classes: C.
        region_size: R, side of a region, in pooled pixels.
        downsampling_factor: DF; with several, the RMI term is averaged over them.
        pooling: "avg", "max", "interp" (bilinear) or "stride" (no pooling; every DF-th region is used).
        pixel_weight: λ in [0, 1].
        pixel_loss: "bce", binary cross entropy summed over classes as in the authors' code; "bce_mean", its mean over
            pixels and classes; "ce", softmax cross entropy; None, the RMI term alone, not weighted.
        with_logits: whether preds are logits (True) or probabilities (False).
        ignore_index: label of void pixels.
        covariance: "sum", as in the authors' code, or "mean", as in the paper.
        ridge: ξ, added to Σ_P and to M; the paper's 1e-6 belongs to covariance="mean".
        absent_classes: "include", as the authors do, or "skip", which excludes classes that are absent from an image
            from its sum: each is a constant ½ log ξ (-3.80 with ξ = 5e-4) without gradient.
        backend: implementation of the full-size operations; results are equal. "auto": the fastest available; "plain":
            PyTorch, on any device with float64; "c": C kernels on a CPU, compiled at the first call and cached in
            ~/.cache/beyondpixel (or $BEYONDPIXEL_CACHE); "triton": Triton kernels on CUDA. "plain" computes what the
            kernels do not support (float64, probabilities, in C the moments of pooling="stride") and, after a warning,
            what cannot be compiled.

    Attributes:
        jittered: matrices since `reset()` that were not positive definite with the ridge and got a larger one.

    An image without valid pixels adds nothing to the RMI term, but counts as an image.

    Raises:
        ValueError: at construction for a value out of range or an unknown name, when called if shapes do not fit, a
            label is out of range or a region does not fit the pooled size.

    >>> import torch
    >>> loss = RMILoss(num_classes=2, downsampling_factor=2)
    >>> logits = torch.zeros(1, 2, 16, 16, requires_grad=True)
    >>> target = torch.zeros(1, 16, 16, dtype=torch.long)
    >>> target[:, 4:12, 4:12] = 1
    >>> loss(logits, target).backward()
    >>> sorted(loss.terms)
    ['pixel', 'rmi']

    The authors' probabilities are a sigmoid of each class. Those of a softmax are passed as probabilities:

    >>> softmax = RMILoss(num_classes=2, downsampling_factor=2, with_logits=False)
    >>> softmax(logits.softmax(dim=1), target).requires_grad
    True

    Binary segmentation, foreground against the rest, has one class and a target (N, 1, H, W) of 0 and 1:

    >>> binary = RMILoss(num_classes=1, downsampling_factor=2)
    >>> binary(torch.zeros(1, 1, 16, 16, requires_grad=True), target[:, None]).requires_grad
    True
    """

    jittered: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        region_size: int = 3,
        downsampling_factor: int | Sequence[int] = 4,
        pooling: Literal["avg", "max", "interp", "stride"] = "avg",
        pixel_weight: float = 0.5,
        pixel_loss: Literal["bce", "bce_mean", "ce"] | None = "bce",
        with_logits: bool = True,
        ignore_index: int = 255,
        covariance: Literal["sum", "mean"] = "sum",
        ridge: float = 5e-4,
        absent_classes: Literal["include", "skip"] = "include",
        backend: Literal["auto", "plain", "c", "triton"] = "auto",
    ) -> None:
        check_choice("absent_classes", absent_classes, ABSENT_CLASSES)
        check_range("pixel_weight", pixel_weight, 0, 1)
        super().__init__(
            num_classes,
            term_names=("rmi",),
            pixel_loss=pixel_loss,
            with_logits=with_logits,
            ignore_index=ignore_index,
        )
        self.bound = RegionBound(region_size, downsampling_factor, pooling, covariance, ridge, backend)
        self.pixel_weight = pixel_weight
        self.absent_classes = absent_classes
        self.add_state("jittered", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _batch_terms(self, preds: Tensor, target: Tensor) -> dict[str, Term]:
        with_bce = self.pixel_loss in ("bce", "bce_mean")
        bce, bound, absent, jittered = self.bound(preds, target, with_logits=self.with_logits, with_bce=with_bce)
        self.jittered = self.jittered + jittered
        excluded = ~has_valid(target)[:, None]
        if self.absent_classes == "skip":
            excluded = excluded | absent
        images = preds.new_full((), preds.shape[0], dtype=torch.float64)
        terms = {"rmi": (-bound.masked_fill(excluded, 0).sum(), images)}
        if with_bce:
            terms["pixel"] = (bce, self._bce_count(target))
        elif self.pixel_loss == "ce":
            terms["pixel"] = self._pixel_term(preds, target)
        return terms

    def _combine(self, terms: dict[str, Tensor]) -> Tensor:
        if self.pixel_loss is None:
            return terms["rmi"]
        return self.pixel_weight * terms["pixel"] + (1 - self.pixel_weight) * terms["rmi"]
