"""Conversions between logits and probabilities: inferers average probabilities and return logits."""

from __future__ import annotations

from torch import Tensor, finfo, float32

TINY = finfo(float32).tiny


def to_probs(logits: Tensor) -> Tensor:
    """Softmax over classes in float32.

    Softmax is also used for a network that was trained with sigmoids (BCE, RMI): the argmax is the same, and each pixel
    has one distribution over classes, which averages and the CRF need.
    """
    return logits.float().softmax(dim=1)


def to_logits(probs: Tensor) -> Tensor:
    """Log-probabilities, logits whose softmax is `probs`; finite where a probability is 0.

    Example:
        >>> import torch
        >>> to_probs(to_logits(torch.tensor([[0.0, 0.25, 0.75]]))).round(decimals=2)
        tensor([[0.0000, 0.2500, 0.7500]])
    """
    return probs.clamp_min(TINY).log()
