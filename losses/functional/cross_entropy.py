"""Pixel by pixel cross entropies, softmax and binary."""

import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses.functional._validation import (
    LabelTruth,
    MultiHotTruth,
    Truth,
    check_choice,
    check_probs,
    read_target,
)
from beyondpixel.losses.functional.map_pass import MapPass

REDUCTIONS = ("class_sum", "mean")


def cross_entropy(preds: Tensor, target: Tensor, *, ignore_index: int = 255, with_logits: bool = True) -> Tensor:
    r"""Softmax cross entropy, the mean over the valid pixels.

    .. math:: L = -\frac{1}{|V|} \sum_{i \in V} \sum_c y_{ic} \log p_{ic}, \quad p = \mathrm{softmax}(\mathrm{preds})

    Args:
        preds: (N, C, H, W) logits, or probabilities that sum to 1 over C with `with_logits=False`.
        target: (N, H, W) integer labels, or (N, C, H, W) multi-hot of 0 and 1.
        ignore_index: label of void pixels.
        with_logits: whether preds are logits.

    Returns:
        Scalar ≥ 0; 0 if no pixel is valid.

    Raises:
        ValueError: if shapes do not fit or a label is out of range.

    >>> import torch
    >>> logits = torch.tensor([0.0, 0.0]).reshape(1, 2, 1, 1)
    >>> cross_entropy(logits, torch.tensor([[[1]]]))  # log 2
    tensor(0.6931)
    """
    with torch.autocast(preds.device.type, enabled=False):
        truth = read_target(preds, target, preds.shape[1] if preds.ndim > 1 else 0, ignore_index)
        total = cross_entropy_sum(preds, truth, with_logits)
        loss = total / truth.num_valid().clamp_min(1)
    truth.check_values()
    return loss.to(torch.promote_types(preds.dtype, torch.float32))


def binary_cross_entropy(
    preds: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    with_logits: bool = True,
    reduction: str = "class_sum",
) -> Tensor:
    r"""Binary cross entropy of each class against the rest.

    .. math:: L = -\frac{1}{Z} \sum_{i \in V} \sum_c y_{ic} \log p_{ic} + (1 - y_{ic}) \log (1 - p_{ic})

    with p the sigmoid of preds. Z is |V| + 1 for `reduction="class_sum"` as in the RMI authors' code, and C |V| for
    "mean".

    Args:
        preds: (N, C, H, W) logits, or probabilities with `with_logits=False`.
        target: (N, H, W) integer labels, or (N, C, H, W) multi-hot of 0 and 1.
        ignore_index: label of void pixels.
        with_logits: whether preds are logits.
        reduction: "class_sum" or "mean".

    Returns:
        Scalar ≥ 0; 0 if no pixel is valid.

    Raises:
        ValueError: if shapes do not fit, a label is out of range or the reduction is unknown.

    >>> import torch
    >>> logits = torch.zeros(1, 2, 1, 1)
    >>> binary_cross_entropy(logits, torch.tensor([[[1]]]), reduction="mean")  # log 2
    tensor(0.6931)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    num_classes = preds.shape[1] if preds.ndim > 1 else 0
    with torch.autocast(preds.device.type, enabled=False):
        truth = read_target(preds, target, num_classes, ignore_index)
        if not with_logits:
            check_probs(preds)
        total, _ = MapPass.apply(preds, truth, with_logits, True, None)
        loss: Tensor = total / pixel_divisor(truth.num_valid(), reduction, num_classes)
    truth.check_values()
    return loss.to(torch.promote_types(preds.dtype, torch.float32))


def pixel_divisor(count: Tensor, reduction: str, num_classes: int) -> Tensor:
    """What a sum over valid pixels is divided by."""
    return count + 1 if reduction == "class_sum" else (count * num_classes).clamp_min(1)


def cross_entropy_sum(preds: Tensor, truth: Truth, with_logits: bool) -> Tensor:
    """Summed softmax cross entropy over the valid pixels, float64 scalar with a graph."""
    preds = preds.to(torch.promote_types(preds.dtype, torch.float32))
    if with_logits:
        log_probs = preds.log_softmax(1)
    else:
        check_probs(preds)
        log_probs = preds.clamp_min(torch.finfo(preds.dtype).tiny).log()
    if isinstance(truth, LabelTruth):
        # a wrong label would abort a CUDA context here, before `check_values` can name it
        labels = truth.labels.clamp(-1, preds.shape[1] - 1).long()
        # a float32 sum over millions of pixels would lose digits
        picked = F.nll_loss(log_probs, labels, ignore_index=-1, reduction="none")
    elif isinstance(truth, MultiHotTruth):
        picked = -(truth.multi_hot.to(log_probs.dtype) * log_probs).sum(1)
    return picked.sum(dtype=torch.float64)
