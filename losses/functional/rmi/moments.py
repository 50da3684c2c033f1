"""Covariances of the regions of a map, without keeping the unfolded regions, and the way back.

A region is an R × R patch of a pooled map, read row by row as a vector of d = R² numbers. Stacking the vectors of all n
positions gives Y (labels) and P (probabilities), d × n each. They are built in float64 for a few maps at a time, and
only their 2d × 2d second moments leave this file.
"""

import torch
from torch import Tensor

from beyondpixel.losses.functional.chunks import chunks


def region_count(length: int, region_size: int, step: int) -> int:
    """Number of regions along a side of the given length."""
    return (length - region_size) // step + 1


def regions(maps: Tensor, region_size: int, step: int) -> Tensor:
    """Cut maps (M, h, w) into centred float64 regions (M, d, n), row by row."""
    count = maps.shape[0]
    patches = maps.unfold(1, region_size, step).unfold(2, region_size, step)  # (M, h', w', R, R)
    stack = torch.empty(
        count, region_size, region_size, *patches.shape[1:3], dtype=torch.float64, device=maps.device
    ).copy_(patches.permute(0, 3, 4, 1, 2))
    stack = stack.view(count, region_size**2, -1)
    return stack.sub_(stack.mean(-1, keepdim=True))


def fold(stack: Tensor, height: int, width: int, region_size: int, step: int) -> Tensor:
    """The transpose of cutting: add (M, d, n) up where the regions came from, giving (M, h, w)."""
    rows, columns = region_count(height, region_size, step), region_count(width, region_size, step)
    patches = stack.view(-1, region_size, region_size, rows, columns)
    maps = torch.zeros(stack.shape[0], height, width, dtype=stack.dtype, device=stack.device)
    for dy in range(region_size):
        for dx in range(region_size):
            rows_met = slice(dy, dy + (rows - 1) * step + 1, step)
            columns_met = slice(dx, dx + (columns - 1) * step + 1, step)
            maps[:, rows_met, columns_met] += patches[:, dy, dx]
    return maps


def second_moments(labels: Tensor, probs: Tensor, region_size: int, step: int) -> Tensor:
    """Sums of products of centred regions.

    Args:
        labels: (M, h, w) pooled labels.
        probs: (M, h, w) pooled probabilities.
        region_size: R.
        step: from one region to the next.

    Returns:
        (M, 2d, 2d) float64: [[Y Yᵀ, Y Pᵀ], [P Yᵀ, P Pᵀ]].
    """
    side = region_size**2
    moments = torch.empty(len(labels), 2 * side, 2 * side, dtype=torch.float64, device=labels.device)
    for part in chunks(len(labels), 16 * side * labels[0].numel(), labels.device):
        stack = torch.cat([regions(labels[part], region_size, step), regions(probs[part], region_size, step)], 1)
        torch.bmm(stack, stack.mT, out=moments[part])
    return moments


def moments_backward(
    from_probs: Tensor, from_labels: Tensor, labels: Tensor, probs: Tensor, *, region_size: int, step: int
) -> Tensor:
    """Gradient in the pooled probabilities, given that the gradient in P is `from_probs` P + `from_labels` Y.

    Args:
        from_probs: (M, d, d) float64.
        from_labels: (M, d, d) float64.
        labels: (M, h, w) pooled labels.
        probs: (M, h, w) pooled probabilities.
        region_size: R.
        step: from one region to the next.

    Returns:
        (M, h, w) in the dtype of probs.
    """
    grad = torch.empty_like(probs)
    height, width = probs.shape[1:]
    for part in chunks(len(probs), 24 * region_size**2 * height * width, probs.device):
        stack = torch.bmm(from_labels[part], regions(labels[part], region_size, step))
        stack.baddbmm_(from_probs[part], regions(probs[part], region_size, step))
        grad[part] = fold(stack, height, width, region_size, step)
    return grad
