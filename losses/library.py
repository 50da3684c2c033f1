"""Dice, Jaccard, Tversky and focal loss of segmentation-models-pytorch with our interface, and Lovász-softmax.

Void pixels are masked before the library is called, since it does not always handle them correctly: a NaN there reaches
the overlap losses, and for a batch of void pixels only, the focal loss is NaN and the Lovász loss is not a scalar. For
the overlap losses, a void pixel is 0 in probabilities and labels, which adds nothing to their sums; for the focal loss,
it is a pixel predicted correctly with certainty.

The library's Lovász loss has data-dependent branches, which break graphs, and fails for float64, so
`functional.lovasz.lovasz_softmax` is our own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from beyondpixel.losses.base import SegmentationLoss, Term
from beyondpixel.losses.functional.arguments import check_range
from beyondpixel.losses.functional.lovasz import lovasz_softmax
from beyondpixel.losses.functional.target import multi_hot, num_valid, valid_mask


class _OverlapLoss(SegmentationLoss):
    """Loss on the overlap of each class's region in a batch with its probabilities, softmax over the classes.

    It is not a sum over pixels, so `compute()` is the batch mean, weighted by the numbers of images with a valid pixel.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        name: str,
        overlap: Callable[[Tensor, Tensor], Tensor],
        with_logits: bool,
        ignore_index: int,
    ) -> None:
        super().__init__(num_classes, term_names=(name,), with_logits=with_logits, ignore_index=ignore_index)
        self.name = name
        self._overlap = overlap

    def _batch_terms(self, preds: Tensor, target: Tensor) -> dict[str, Term]:
        valid = valid_mask(target)
        probs = preds.to(torch.promote_types(preds.dtype, torch.float32))
        if self.with_logits:
            probs = torch.where(valid[:, None], probs, 0)
            probs = probs.sigmoid() if self.num_classes == 1 else probs.softmax(1)
        probs = torch.where(valid[:, None], probs, 0)
        # the library cannot reshape an empty batch
        value = self._overlap(probs, multi_hot(target, self.num_classes, probs.dtype)) if len(probs) else probs.sum()
        images = valid.flatten(1).any(1).sum().double()
        return {self.name: (value.double() * images, images)}


class DiceLoss(_OverlapLoss):
    """Dice loss: 1 - 2 |P ∩ Y| / (|P| + |Y|) over the batch, the mean over the classes; 0 for an absent class.

    With `smooth` it is 1 - (|P ∩ Y| + smooth) / ((|P| + |Y|) / 2 + smooth), as in the library.

    Probabilities are a softmax (a sigmoid for one class); pass any others with `with_logits=False`. `compute()` is the
    mean over batches, weighted by their numbers of images with a valid pixel.

    Args:
        num_classes: C.
        smooth: as above, 0 for none.
        with_logits: whether preds are logits (True) or probabilities (False).
        ignore_index: label of void pixels.

    >>> loss = DiceLoss(2)
    >>> loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]]))  # class 0: 1 - 2 · 0.5 / 1.5, class 1: absent
    tensor(0.1667)
    """

    def __init__(
        self, num_classes: int, *, smooth: float = 0.0, with_logits: bool = True, ignore_index: int = 255
    ) -> None:
        check_range("smooth", smooth, 0)
        overlap = _library("DiceLoss")("multilabel", from_logits=False, smooth=smooth)
        super().__init__(num_classes, name="dice", overlap=overlap, with_logits=with_logits, ignore_index=ignore_index)


class JaccardLoss(_OverlapLoss):
    """Jaccard loss: 1 - |P ∩ Y| / |P ∪ Y| over the batch, the mean over the classes; otherwise as `DiceLoss`.

    >>> loss = JaccardLoss(2)
    >>> loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]]))  # class 0: 1 - 0.5 / 1, class 1: absent
    tensor(0.2500)
    """

    def __init__(
        self, num_classes: int, *, smooth: float = 0.0, with_logits: bool = True, ignore_index: int = 255
    ) -> None:
        check_range("smooth", smooth, 0)
        overlap = _library("JaccardLoss")("multilabel", from_logits=False, smooth=smooth)
        super().__init__(
            num_classes, name="jaccard", overlap=overlap, with_logits=with_logits, ignore_index=ignore_index
        )


class TverskyLoss(_OverlapLoss):
    """Tversky loss: 1 - TP / (TP + α FP + β FN) over the batch, the mean over the classes; otherwise as `DiceLoss`.

    Args:
        num_classes: C.
        alpha: α, weight of false positives; with both at 0.5 this is the Dice loss.
        beta: β, weight of false negatives.
        smooth: added to numerator and denominator.
        with_logits: whether preds are logits (True) or probabilities (False).
        ignore_index: label of void pixels.

    >>> loss = TverskyLoss(2, alpha=0.3, beta=0.7)
    >>> loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]]))  # class 0: 1 - 0.5 / (0.5 + 0.7 · 0.5)
    tensor(0.2059)
    """

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth: float = 0.0,
        with_logits: bool = True,
        ignore_index: int = 255,
    ) -> None:
        for name, value in {"alpha": alpha, "beta": beta, "smooth": smooth}.items():
            check_range(name, value, 0)
        overlap = _library("TverskyLoss")("multilabel", from_logits=False, alpha=alpha, beta=beta, smooth=smooth)
        super().__init__(
            num_classes, name="tversky", overlap=overlap, with_logits=with_logits, ignore_index=ignore_index
        )


class LovaszLoss(_OverlapLoss):
    """Lovász-softmax loss over the batch, `functional.lovasz.lovasz_softmax`; otherwise as `DiceLoss`.

    >>> loss = LovaszLoss(2)
    >>> loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]]))
    tensor(0.5000)
    """

    def __init__(self, num_classes: int, *, with_logits: bool = True, ignore_index: int = 255) -> None:
        super().__init__(
            num_classes, name="lovasz", overlap=lovasz_softmax, with_logits=with_logits, ignore_index=ignore_index
        )


class FocalLoss(SegmentationLoss):
    r"""Focal loss of each class against the rest (Lin et al., ICCV 2017), the mean over valid pixels and classes.

    .. math:: -(1 - p_t)^\gamma \log p_t, \quad p_t = p \text{ at pixels of the class, } 1 - p \text{ elsewhere}

    with p the sigmoid of preds, times α at pixels of the class and 1 - α elsewhere if α is given.

    Args:
        num_classes: C.
        gamma: γ, 0 or at least 1 (in between, the gradient of a pixel predicted correctly with certainty is infinite).
        alpha: α in [0, 1], or None.
        with_logits: whether preds are logits (True) or probabilities (False).
        ignore_index: label of void pixels.

    >>> loss = FocalLoss(2, gamma=2.0)
    >>> loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]]))  # 0.5² log 2
    tensor(0.1733)
    """

    def __init__(
        self,
        num_classes: int,
        *,
        gamma: float = 2.0,
        alpha: float | None = None,
        with_logits: bool = True,
        ignore_index: int = 255,
    ) -> None:
        if gamma != 0:
            check_range("gamma", gamma, 1)
        if alpha is not None:
            check_range("alpha", alpha, 0, 1)
        super().__init__(num_classes, term_names=("focal",), with_logits=with_logits, ignore_index=ignore_index)
        self._sum = _library("FocalLoss")("multilabel", gamma=gamma, alpha=alpha, reduction="sum")

    def _batch_terms(self, preds: Tensor, target: Tensor) -> dict[str, Term]:
        void = ~valid_mask(target)[:, None]
        logits = preds.to(torch.promote_types(preds.dtype, torch.float32))
        if not self.with_logits:
            logits = logits.logit(eps=torch.finfo(logits.dtype).eps)
        # predicted correctly with certainty: -log p_t rounds to 0; infinite logits would give NaN as 0 · ∞
        logits = logits.clamp(-1e30, 1e30).masked_fill(void, 1e4)
        one_hot = multi_hot(target, self.num_classes, logits.dtype).masked_fill(void, 1)
        # the library's last step is a mean over the classes
        return {"focal": (self._sum(logits, one_hot).double(), num_valid(target))}


def _library(name: str) -> Any:
    try:
        from segmentation_models_pytorch import losses
    except ImportError as error:
        raise ImportError(
            f"{name} needs segmentation-models-pytorch, which is not installed: pip install segmentation-models-pytorch"
        ) from error
    return getattr(losses, name)
