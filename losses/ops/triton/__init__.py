"""The operators in Triton, for float32 and half-precision logits on CUDA.

With TRITON_INTERPRET=1 in the environment, Triton runs the kernels in Python on a CPU, slowly: for tests.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from beyondpixel.losses.ops import plain
from beyondpixel.losses.ops.triton import moment_kernels, pool_kernels

_POOL_ELEMENTS = 256
_PIXELS = 1024
_TILE = 32
_POSITIONS = 32
_PARTS = 8


def bce_pool(
    preds: Tensor, target: Tensor, pooling: str, kernel_size: int, with_logits: bool, with_bce: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `operators.bce_pool`; for logits only."""
    preds = preds.contiguous()
    planes, height, width = preds.shape[0] * preds.shape[1], preds.shape[2], preds.shape[3]
    pooled, pooled_target, indices = plain.empty_outputs(preds, pooling, kernel_size)
    power = triton.next_power_of_2(kernel_size)
    block = min(max(_POOL_ELEMENTS // power, 1), triton.next_power_of_2(width))
    # pooling windows that cover all pixels, more than are pooled if some at the end are left over
    rows, columns = (triton.cdiv(side + kernel_size // 2, kernel_size) for side in (height, width))
    grid = (planes, rows, triton.cdiv(columns, block))
    bce = preds.new_empty(grid if with_bce else 1, dtype=torch.float64)
    _launch(
        *(pool_kernels.pool_forward, grid, preds, target, bce, pooled, pooled_target, indices),
        *(preds.shape[1], height, width, *_size(pooled)),
        POOLING=pooling,
        KERNEL=kernel_size,
        KERNEL_POWER=power,
        MULTI_HOT=target.ndim == 4,
        WITH_BCE=with_bce,
        BLOCK=block,
    )
    return bce.sum() if with_bce else bce.new_zeros(()), pooled, pooled_target, indices


def bce_pool_backward(
    grad_bce: Tensor,
    grad_pooled: Tensor,
    preds: Tensor,
    target: Tensor,
    indices: Tensor,
    pooling: str,
    kernel_size: int,
    with_logits: bool,
    with_bce: bool,
) -> Tensor:
    """See `operators.bce_pool`."""
    preds, grad_pooled = preds.contiguous(), grad_pooled.contiguous()
    planes, height, width = preds.shape[0] * preds.shape[1], preds.shape[2], preds.shape[3]
    grad = torch.empty_like(preds)
    _launch(
        *(pool_kernels.pool_backward, (planes, triton.cdiv(height * width, _PIXELS))),
        *(grad_bce, grad_pooled, preds, target, indices, grad),
        *(preds.shape[1], height, width, *_size(grad_pooled)),
        POOLING=pooling,
        KERNEL=kernel_size,
        MULTI_HOT=target.ndim == 4,
        WITH_BCE=with_bce,
        BLOCK=_PIXELS,
    )
    return grad


def region_moments(labels: Tensor, probs: Tensor, region_size: int, step: int) -> Tensor:
    """See `operators.region_moments`."""
    planes = probs.shape[:2]
    labels, probs = labels.flatten(0, 1).contiguous(), probs.flatten(0, 1).contiguous()
    count, height, width = probs.shape
    rows, columns = ((side - region_size) // step + 1 for side in (height, width))
    size = 2 * region_size**2
    tiles = triton.cdiv(size, _TILE)
    moments = probs.new_empty(_PARTS, count, size, size, dtype=torch.float64)
    sums = probs.new_empty(_PARTS, count, size, dtype=torch.float64)
    _launch(
        *(moment_kernels.moments_forward, (count, tiles * tiles, _PARTS)),
        *(labels, probs, _means(labels, probs), moments, sums),
        *(count, height, width, columns, rows * columns, step),
        REGION=region_size,
        TILES=tiles,
        TILE=_TILE,
        BLOCK=_POSITIONS,
        num_stages=1,  # the operands are computed, so there are no copies to prefetch
    )
    total = sums.sum(0)
    moments = moments.sum(0).baddbmm_(total[:, :, None], total[:, None], alpha=-1 / (rows * columns))
    return moments.view(*planes, size, size)


def region_moments_backward(weights: Tensor, labels: Tensor, probs: Tensor, region_size: int, step: int) -> Tensor:
    """See `operators.region_moments`."""
    shape = probs.shape
    weights, labels, probs = (tensor.flatten(0, 1).contiguous() for tensor in (weights, labels, probs))
    count, height, width = probs.shape
    rows, columns = ((side - region_size) // step + 1 for side in (height, width))
    means = _means(labels, probs)
    grad = torch.empty_like(probs)
    _launch(
        *(moment_kernels.moments_backward, (count, triton.cdiv(height * width, _PIXELS // 4))),
        *(weights, _constants(weights, labels, probs, means, region_size, step), labels, probs, means, grad),
        *(height, width, rows, columns, step),
        REGION=region_size,
        BLOCK=_PIXELS // 4,
    )
    return grad.view(shape)


def _means(labels: Tensor, probs: Tensor) -> Tensor:
    return torch.stack([labels, probs], 1).mean((2, 3), dtype=torch.float64)


def _constants(weights: Tensor, labels: Tensor, probs: Tensor, means: Tensor, region_size: int, step: int) -> Tensor:
    """Multiply weights by the means over all regions of the entries (minus the planes' means), to (M, d)."""
    rows, columns = ((side - region_size) // step + 1 for side in probs.shape[1:])
    entries = [
        planes[:, dy : dy + (rows - 1) * step + 1 : step, dx : dx + (columns - 1) * step + 1 : step].mean(
            (1, 2), dtype=torch.float64
        )
        - means[:, number]
        for number, planes in enumerate((labels, probs))
        for dy in range(region_size)
        for dx in range(region_size)
    ]
    return (weights @ torch.stack(entries, 1)[..., None])[..., 0]


def _size(pooled: Tensor) -> tuple[int, int]:
    return (pooled.shape[2], pooled.shape[3]) if pooled.ndim == 4 else (0, 0)


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    if 0 in grid:
        return  # an empty batch
    first = next(argument for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device_of(first):
        kernel[grid](*arguments, **options)
