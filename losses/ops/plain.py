"""The operators in plain PyTorch, for any device: what the other implementations are checked against."""

import torch
from torch import Tensor
from torch.nn import functional as F


def bce_pool(
    preds: Tensor, target: Tensor, pooling: str, kernel_size: int, with_logits: bool, with_bce: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `operators.bce_pool`."""
    preds = preds.to(torch.promote_types(preds.dtype, torch.float32))
    is_class, void = _is_class(target, preds.shape[1]), _void(target)
    bce = preds.new_zeros((), dtype=torch.float64)
    if with_bce:
        if with_logits:
            # log(1 + exp(-x)) where the pixel is of the class and log(1 + exp(x)) elsewhere
            signed = torch.where(is_class, -preds, preds)
            loss = signed.clamp_min(0).add_(signed.abs_().neg_().exp_().log1p_())
        else:
            # as in torch the logarithm ends at -100, so a wrong probability of exactly 0 costs 100 and not infinity
            loss = -torch.where(is_class, preds, 1 - preds).log().clamp_min(-100)
        bce = loss.masked_fill_(void, 0).sum(1).sum(dtype=torch.float64)
    pooled, pooled_target, indices = empty_outputs(preds, pooling, kernel_size)
    if pooling != "none":
        pooled = (preds.sigmoid() if with_logits else preds.clone()).masked_fill_(void, 0)
    if pooling in ("avg", "max"):
        pooled, indices = pool(pooled, pooling, kernel_size)
        pooled_target = pool(is_class.to(pooled.dtype), pooling, kernel_size)[0]
    return bce, pooled, pooled_target, indices


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
    dtype = preds.dtype
    preds = preds.to(torch.promote_types(dtype, torch.float32))
    grad = _unpool(grad_pooled, preds, indices, pooling, kernel_size)
    probs = preds.sigmoid() if with_logits else preds
    if with_logits:
        grad.mul_(probs).addcmul_(grad, probs, value=-1)  # σ' = σ (1 - σ)
    if with_bce:
        # p - y is the gradient in the logits, and (p - y) / (p (1 - p)) the one in the probabilities
        difference = probs - _is_class(target, preds.shape[1]).to(probs.dtype)
        if not with_logits:
            difference /= (probs * (1 - probs)).clamp_min_(1e-12)
        grad.addcmul_(difference, grad_bce.to(grad.dtype))
    return grad.masked_fill_(_void(target), 0).to(dtype)


def pool(planes: Tensor, pooling: str, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Pool as the RMI authors do, and the indices of the largest pixels (int32, empty for the mean)."""
    if pooling == "avg":
        pooled = F.avg_pool2d(planes, kernel_size, kernel_size, kernel_size // 2)
        return pooled, planes.new_empty(0, dtype=torch.int32)
    pooled, indices = F.max_pool2d(planes, kernel_size, kernel_size, kernel_size // 2, return_indices=True)
    return pooled, indices.to(torch.int32)


def empty_outputs(preds: Tensor, pooling: str, kernel_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled probabilities, pooled target and indices of the shapes and dtypes that `bce_pool` returns."""
    batch, num_classes, height, width = preds.shape
    dtype = torch.promote_types(preds.dtype, torch.float32)
    size = [batch, num_classes, *(pooled_size(side, kernel_size) for side in (height, width))]
    pooled = preds.new_empty([0] if pooling == "none" else size, dtype=dtype)
    pooled_target = preds.new_empty(size if pooling in ("avg", "max") else [0], dtype=dtype)
    return pooled, pooled_target, preds.new_empty(size if pooling == "max" else [0], dtype=torch.int32)


def pooled_size(length: int, kernel_size: int) -> int:
    """Windows along a side: the first begins kernel_size // 2 pixels outside, and pixels at the end may be in none."""
    return (length + 2 * (kernel_size // 2)) // kernel_size


def region_moments(labels: Tensor, probs: Tensor, region_size: int, step: int) -> Tensor:
    """See `operators.region_moments`."""
    rows, height = _shifted_rows(labels, probs, region_size, step)
    count, side, positions = len(rows), region_size, height * rows.shape[-1]
    moments = rows.new_empty(count, 2, side, side, 2, side, side)
    means = rows.new_empty(count, 2, side, side)
    for dy in range(side):
        upper = _pick_rows(rows, dy, height, step)
        means[:, :, dy] = upper.mean(-1).view(count, 2, side)
        for other in range(dy, side):
            block = upper @ _pick_rows(rows, other, height, step).mT
            moments[:, :, dy, :, :, other] = block.view(count, 2, side, 2, side)
            moments[:, :, other, :, :, dy] = block.mT.view(count, 2, side, 2, side)
    means = means.flatten(1)
    moments = moments.view(count, 2 * side**2, 2 * side**2)
    return moments.baddbmm_(means[:, :, None], means[:, None], alpha=-positions)


def region_moments_backward(weights: Tensor, labels: Tensor, probs: Tensor, region_size: int, step: int) -> Tensor:
    """See `operators.region_moments`."""
    rows, height = _shifted_rows(labels, probs, region_size, step)
    count, side = len(rows), region_size
    weights = weights.view(count, side, side, 2, side, side)
    grad = rows.new_zeros(count, probs.shape[1], probs.shape[2])
    for dy in range(side):
        # the gradient in the rows that regions have at offset dy, for all their offsets dx
        grad_rows = rows.new_zeros(count, side, height * rows.shape[-1])
        for other in range(side):
            from_rows = weights[:, dy, :, :, other].flatten(2)
            picked = _pick_rows(rows, other, height, step)
            grad_rows.baddbmm_(from_rows, picked)
            grad_rows -= from_rows @ picked.mean(-1, keepdim=True)
        grad_rows = grad_rows.view(count, side, height, rows.shape[-1])
        for dx in range(side):
            _stride(_stride(grad, 1, dy, height, step), 2, dx, rows.shape[-1], step).add_(grad_rows[:, dx])
    return grad.to(probs.dtype)


def _shifted_rows(labels: Tensor, probs: Tensor, region_size: int, step: int) -> tuple[Tensor, int]:
    """Float64 planes whose entry (M, j, dx, y, x) is plane j (0 labels, 1 probabilities) at (y, x step + dx).

    Also returns the number of regions one below the other. Products of regions need no more than this: their R × R
    entries are rows of R of these, one below the other.
    """
    height, width = ((side - region_size) // step + 1 for side in probs.shape[1:])
    planes = torch.stack([labels, probs], 1).double()
    # regions are centered later; taking most of the mean away first keeps digits
    planes -= planes.mean((2, 3), keepdim=True)
    return torch.stack([_stride(planes, 3, dx, width, step) for dx in range(region_size)], 2), height


def _pick_rows(rows: Tensor, dy: int, height: int, step: int) -> Tensor:
    """(M, 2R, n): what all regions have at the vertical offset dy."""
    return _stride(rows, 3, dy, height, step).flatten(3).flatten(1, 2)


def _stride(planes: Tensor, dim: int, start: int, count: int, step: int) -> Tensor:
    """Every step-th of the entries along an axis."""
    index = [slice(None)] * dim + [slice(start, start + (count - 1) * step + 1, step)]
    return planes[tuple(index)]


def _is_class(target: Tensor, num_classes: int) -> Tensor:
    """(N, C, H, W) bool."""
    if target.ndim == 4:
        return target == 1
    classes = torch.arange(num_classes, dtype=target.dtype, device=target.device)
    return target[:, None] == classes[:, None, None]


def _void(target: Tensor) -> Tensor:
    """(N, 1 or C, H, W) bool."""
    return (target if target.ndim == 4 else target[:, None]) < 0


def _unpool(grad_pooled: Tensor, preds: Tensor, indices: Tensor, pooling: str, kernel_size: int) -> Tensor:
    """Gradient in the probabilities, in new memory."""
    if pooling == "none":
        return torch.zeros_like(preds)
    if pooling == "identity":
        return grad_pooled.clone()
    kernel, padding = [kernel_size] * 2, [kernel_size // 2] * 2
    if pooling == "avg":
        grad: Tensor = torch.ops.aten.avg_pool2d_backward(
            grad_pooled, preds, kernel, kernel, padding, False, True, None
        )
        return grad
    grad = torch.zeros_like(preds, memory_format=torch.contiguous_format)
    grad.flatten(2).scatter_(2, indices.flatten(2).long(), grad_pooled.flatten(2))
    return grad
