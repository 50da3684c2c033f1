"""The operators in plain PyTorch, for any device: what the other implementations are checked against.

They go image by image, so that what they need besides their results is small, and made in memory that is used again.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def bce_pool(
    preds: Tensor, target: Tensor, pooling: str, kernel_size: int, with_logits: bool, with_bce: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `operators.bce_pool`."""
    outputs = pooled, pooled_target, indices = empty_outputs(preds, pooling, kernel_size)
    bce = preds.new_zeros((), dtype=torch.float64)
    for image in range(len(preds)):
        part = slice(image, image + 1)
        x = preds[part].to(pooled.dtype)
        is_class, void = _is_class(target[part], preds.shape[1]), _void(target[part])
        if with_bce:
            bce += _summed_bce(x, is_class, void, with_logits)
        if pooling != "none":
            probs = (x.sigmoid() if with_logits else x.clone()).masked_fill_(void, 0)
            results = (*pool(probs, pooling, kernel_size), pool(is_class.to(x.dtype), pooling, kernel_size)[0])
            outputs_of_image = zip((pooled, indices, pooled_target), results, strict=True)
            for output, result in (pair for pair in outputs_of_image if pair[0].numel() > 0):
                output[part] = result
    return bce, *outputs


def _summed_bce(x: Tensor, is_class: Tensor, void: Tensor, with_logits: bool) -> Tensor:
    if with_logits:
        # log(1 + exp(-x)) where the pixel is of the class and log(1 + exp(x)) elsewhere
        loss = torch.where(is_class, -x, x).clamp_min_(0).add_(x.abs().neg_().exp_().log1p_())
    else:
        # as in torch the logarithm ends at -100, so a wrong probability of exactly 0 costs 100 and not infinity
        loss = -torch.where(is_class, x, 1 - x).log_().clamp_min_(-100)
    return loss.sum(1, keepdim=True).masked_fill_(void.any(1, keepdim=True), 0).sum(dtype=torch.float64)


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
    grad = torch.empty_like(preds, memory_format=torch.contiguous_format)
    for image in range(len(preds)):
        part = slice(image, image + 1)
        x = preds[part].to(torch.promote_types(preds.dtype, torch.float32))
        probs = x.sigmoid() if with_logits else x
        result = _unpool(grad_pooled[part], x, indices[part], pooling, kernel_size)
        if with_logits:
            result.mul_(probs).addcmul_(result, probs, value=-1)  # σ' = σ - σ²
        if with_bce:
            # p - y is the gradient in the logits, and (p - y) / (p (1 - p)) the one in the probabilities
            difference = probs - _is_class(target[part], preds.shape[1]).to(x.dtype)
            if not with_logits:
                difference /= (probs * (1 - probs)).clamp_min_(1e-12)
            result.addcmul_(difference, grad_bce.to(x.dtype))
        grad[part] = result.masked_fill_(_void(target[part]), 0)
    return grad


def pool(planes: Tensor, pooling: str, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Pool as the RMI authors do, and the indices of the largest pixels (int32, empty but for "max")."""
    if kernel_size == 1:
        return planes, planes.new_empty(0, dtype=torch.int32)
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
    size = 2 * region_size**2
    moments = probs.new_empty(*probs.shape[:2], size, size, dtype=torch.float64)
    for image, result in enumerate(moments):
        rows, height = _shifted_rows(labels[image], probs[image], region_size, step)
        classes, positions = len(rows), height * rows.shape[-1]
        blocks = result.view(classes, 2, region_size, region_size, 2, region_size, region_size)
        means = rows.new_empty(classes, 2, region_size, region_size)
        for dy in range(region_size):
            upper = _pick_rows(rows, dy, height, step)
            means[:, :, dy] = upper.mean(-1).view(classes, 2, region_size)
            for other in range(dy, region_size):
                block = upper @ _pick_rows(rows, other, height, step).mT
                blocks[:, :, dy, :, :, other] = block.view(classes, 2, region_size, 2, region_size)
                blocks[:, :, other, :, :, dy] = block.mT.view(classes, 2, region_size, 2, region_size)
        flat = means.flatten(1)
        result.baddbmm_(flat[:, :, None], flat[:, None], alpha=-positions)
    return moments


def region_moments_backward(weights: Tensor, labels: Tensor, probs: Tensor, region_size: int, step: int) -> Tensor:
    """See `operators.region_moments`."""
    grad = torch.empty_like(probs, memory_format=torch.contiguous_format)
    for image, of_image in enumerate(weights):
        rows, height = _shifted_rows(labels[image], probs[image], region_size, step)
        of_offsets = of_image.view(-1, region_size, region_size, 2, region_size, region_size)
        picked = [_pick_rows(rows, other, height, step) for other in range(region_size)]
        means = torch.stack([entries.mean(-1) for entries in picked], 1)
        result = rows.new_zeros(probs.shape[1:])
        for dy in range(region_size):
            # the gradient in the rows that regions have at offset dy, for all their offsets dx
            weights_of_rows = of_offsets[:, dy].permute(0, 3, 1, 2, 4).flatten(3)  # (C, dy', dx, 2R)
            constant = (weights_of_rows @ means[..., None]).sum(1)
            grad_rows = -constant.expand(-1, -1, height * rows.shape[-1])
            for of_row, entries in zip(weights_of_rows.unbind(1), picked, strict=True):
                grad_rows.baddbmm_(of_row, entries)
            grad_rows = grad_rows.view(len(rows), region_size, height, rows.shape[-1])
            for dx in range(region_size):
                _stride(_stride(result, 1, dy, height, step), 2, dx, rows.shape[-1], step).add_(grad_rows[:, dx])
        grad[image] = result
    return grad


def _shifted_rows(labels: Tensor, probs: Tensor, region_size: int, step: int) -> tuple[Tensor, int]:
    """Float64 planes of one image: entry (C, j, dx, y, x) is plane j (0 labels, 1 probabilities) at (y, x step + dx).

    Also returns the number of regions one below the other. Products of regions need no more than this: their R × R
    entries are rows of R of these, one below the other.
    """
    height, width = ((side - region_size) // step + 1 for side in probs.shape[1:])
    planes = torch.stack([labels, probs], 1).double()
    # regions are centered later; taking most of the mean away first keeps digits
    planes -= planes.mean((2, 3), keepdim=True)
    return torch.stack([_stride(planes, 3, dx, width, step) for dx in range(region_size)], 2), height


def _pick_rows(rows: Tensor, dy: int, height: int, step: int) -> Tensor:
    """(C, 2R, n): what all regions have at the vertical offset dy."""
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
