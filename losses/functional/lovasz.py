"""Lovász-softmax loss."""

import torch
from torch import Tensor


def lovasz_softmax(probs: Tensor, labels: Tensor) -> Tensor:
    r"""Lovász extension of the Jaccard loss, Eq. 8 and 12 of Berman et al., CVPR 2018, over the classes present.

    .. math:: \frac1{|\mathcal C|} \sum_{c \in \mathcal C} \sum_i m^c_{\pi_i} (J^c_i - J^c_{i-1}), \quad
        m^c = |y^c - p^c|

    where π sorts the pixels of the whole batch by decreasing error m and J_i is the Jaccard loss of the class if the
    first i of them are wrong. A pixel that is 0 in both maps has no effect, so void pixels must be passed as 0.

    Args:
        probs: (N, C, H, W) in [0, 1].
        labels: (N, C, H, W) of 0 and 1, of any dtype.

    Returns:
        Scalar in [0, 1]; 0 if all classes are absent.

    One class, two pixels, the first wrong by 0.4 and the second by 0.1:

    >>> probs = torch.tensor([0.6, 0.1]).reshape(1, 1, 1, 2)
    >>> lovasz_softmax(probs, torch.tensor([1, 0]).reshape(1, 1, 1, 2))  # 0.4 · 1 + 0.1 · 0
    tensor(0.4000)
    """
    errors = (labels.to(probs.dtype) - probs).abs().movedim(1, 0).flatten(1)  # (C, pixels)
    errors, order = errors.sort(1, descending=True)
    is_class = labels.to(torch.int32).movedim(1, 0).flatten(1).gather(1, order)
    hits = is_class.cumsum(1, dtype=torch.int32)
    positions = torch.arange(1, hits.shape[1] + 1, dtype=torch.int32, device=hits.device)
    total = labels.sum((0, 2, 3), dtype=torch.int32)[:, None]
    intersection, union = (total - hits).to(probs.dtype), (total + positions - hits).to(probs.dtype)
    # J_i - J_{i-1}, without the difference of two numbers near 1: a pixel of the class subtracts one from the
    # intersection, any other adds one to the union
    slopes = torch.where(is_class > 0, 1 / union, intersection / union / (union - 1).clamp_min(1))
    present = total[:, 0] > 0
    return torch.where(present, (errors * slopes).sum(1), 0).sum() / present.sum().clamp_min(1)
