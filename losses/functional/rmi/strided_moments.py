"""Second moments of regions that stand several pixels apart: the regions are cut out, a few maps at a time."""

import torch
from torch import Tensor

from beyondpixel.losses.functional.chunks import chunks


def strided_second_moments(labels: Tensor, probs: Tensor, *, region_size: int, step: int) -> Tensor:
    """As `moments.second_moments`, for every step-th region."""
    side = region_size**2
    moments = torch.empty(len(labels), 2 * side, 2 * side, dtype=torch.float64, device=labels.device)
    for part in chunks(len(labels), _bytes_each(labels, region_size, step), labels.device):
        stack = _stack(labels[part], probs[part], region_size, step)
        moments[part] = stack @ stack.mT
    return moments


def strided_moments_backward(weights: Tensor, labels: Tensor, probs: Tensor, *, region_size: int, step: int) -> Tensor:
    """As `moments.moments_backward`, for every step-th region."""
    grad = torch.empty_like(probs)
    for part in chunks(len(probs), _bytes_each(probs, region_size, step), probs.device):
        stack = _stack(labels[part], probs[part], region_size, step)
        grad[part] = _fold(weights[part] @ stack, probs[part], region_size, step)
    return grad


def _bytes_each(maps: Tensor, region_size: int, step: int) -> int:
    return 16 * maps[0:1].numel() * region_size**2 // step**2


def _stack(labels: Tensor, probs: Tensor, region_size: int, step: int) -> Tensor:
    """[Y; P], (M, 2d, n)."""
    return torch.cat([_regions(maps, region_size, step) for maps in (labels, probs)], 1)


def _regions(maps: Tensor, region_size: int, step: int) -> Tensor:
    """Centred float64 regions (M, d, n)."""
    patches = maps.unfold(1, region_size, step).unfold(2, region_size, step)  # (M, h', w', R, R)
    stack = patches.permute(0, 3, 4, 1, 2).double().reshape(len(maps), region_size**2, -1)
    return stack - stack.mean(-1, keepdim=True)


def _fold(stack: Tensor, like: Tensor, region_size: int, step: int) -> Tensor:
    maps = torch.zeros(like.shape, dtype=stack.dtype, device=stack.device)
    rows, columns = ((side - region_size) // step + 1 for side in like.shape[1:])
    patches = stack.view(-1, region_size, region_size, rows, columns)
    for dy in range(region_size):
        for dx in range(region_size):
            rows_met = slice(dy, dy + (rows - 1) * step + 1, step)
            columns_met = slice(dx, dx + (columns - 1) * step + 1, step)
            maps[:, rows_met, columns_met] += patches[:, dy, dx]
    return maps
