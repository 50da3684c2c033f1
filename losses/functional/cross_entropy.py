"""Pixel-wise softmax and binary cross entropy."""

import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses.functional.arguments import check_choice
from beyondpixel.losses.functional.target import num_valid, read_target, without_autocast
from beyondpixel.losses.ops.operators import bce_pool

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
    with without_autocast(preds, target):
        target = read_target(preds, target, ignore_index=ignore_index, with_logits=with_logits)
        loss = cross_entropy_sum(preds, target, with_logits=with_logits) / num_valid(target).clamp_min(1)
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
    with without_autocast(preds, target):
        target = read_target(preds, target, ignore_index=ignore_index, with_logits=with_logits)
        total, _, _ = bce_pool(preds, target, with_logits=with_logits)
        count = num_valid(target)
        loss = total / (count + 1 if reduction == "class_sum" else (count * preds.shape[1]).clamp_min(1))
    return loss.to(torch.promote_types(preds.dtype, torch.float32))


def cross_entropy_sum(preds: Tensor, target: Tensor, *, with_logits: bool = True) -> Tensor:
    """Sum the softmax cross entropy over the valid pixels, float64 scalar; target is from `read_target`."""
    preds = preds.to(torch.promote_types(preds.dtype, torch.float32))
    log_probs = preds.log_softmax(1) if with_logits else preds.clamp_min(torch.finfo(preds.dtype).tiny).log()
    if target.ndim == 3:
        loss = F.nll_loss(log_probs, target.long(), ignore_index=-1, reduction="none")
    else:
        loss = -torch.where(target == 1, log_probs, 0).sum(1)  # a product of 0 and a log of -inf would be NaN
    # a float32 sum over millions of pixels would lose precision
    return loss.sum(dtype=torch.float64)
