"""The operators in plain PyTorch, for any device: the reference for the other implementations.

They loop over groups of images or planes, on a CPU so small that temporary tensors stay in its cache. The moments of
regions are sums of products of rows: copies of all regions would be R times larger.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

_CACHED_ELEMENTS = 2**18


def bce_pool(
    preds: Tensor, target: Tensor, pooling: str, kernel_size: int, with_logits: bool, with_bce: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `operators.bce_pool`."""
    preds = preds.contiguous()
    pooled, pooled_target, indices = empty_outputs(preds, pooling, kernel_size)
    if pooling in ("avg", "max"):
        pooled_target = pool_target(target, pooled_target, pooling, kernel_size)
    bce = preds.new_zeros((), dtype=torch.float64)
    for images in _groups(preds, len(preds), preds.shape[2] * preds.shape[3]):
        void = _void(target[images])
        pixel_loss = preds.new_zeros(void.shape, dtype=pooled.dtype)
        for number in range(preds.shape[1]):
            x = preds[images, number].to(pooled.dtype)
            if with_bce:
                pixel_loss += _bce(x, _is_class(target[images], number, pooled.dtype), with_logits)
            if pooling == "none":
                continue
            probs = (x.sigmoid() if with_logits else x.clone()).masked_fill_(void, 0)
            pooled[images, number], chosen = pool(probs, pooling, kernel_size)
            if pooling == "max":
                indices[images, number] = chosen
        bce += pixel_loss.masked_fill_(void, 0).sum(dtype=torch.float64)
    return bce, pooled, pooled_target, indices


def _bce(x: Tensor, is_class: Tensor, with_logits: bool) -> Tensor:
    if with_logits:
        # log(1 + exp(-x)) at pixels of the class and log(1 + exp(x)) elsewhere; above the threshold that equals x
        return F.softplus(x * (1 - 2 * is_class), threshold=40)
    # as in torch, the logarithm is clamped at -100, so a wrong probability of exactly 0 costs 100 and not infinity
    return -torch.where(is_class > 0, x, 1 - x).log_().clamp_min_(-100)


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
    preds = preds.contiguous()
    grad = torch.empty_like(preds)
    dtype = torch.promote_types(preds.dtype, torch.float32)
    for images in _groups(preds, len(preds), preds.shape[2] * preds.shape[3]):
        void = _void(target[images])
        for number in range(preds.shape[1]):
            x = preds[images, number].to(dtype)
            probs = x.sigmoid() if with_logits else x
            if pooling == "none":
                result = torch.zeros_like(probs)
            else:
                chosen = indices[images, number] if pooling == "max" else indices
                result = _unpool(grad_pooled[images, number], probs, chosen, pooling, kernel_size)
            if with_logits:
                result = torch.ops.aten.sigmoid_backward(result, probs)
            if with_bce:
                gradient = _bce_gradient(probs, _is_class(target[images], number, dtype), with_logits)
                result = result.addcmul_(gradient, grad_bce.to(dtype))
            grad[images, number] = result.masked_fill_(void, 0)
    return grad


def _bce_gradient(probs: Tensor, is_class: Tensor, with_logits: bool) -> Tensor:
    """Return p - y for logits, (p - y) / (p (1 - p)) for probabilities."""
    difference = probs - is_class
    return difference if with_logits else difference / (probs * (1 - probs)).clamp_min_(1e-12)


def pool(planes: Tensor, pooling: str, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Pool as the RMI authors do, and return the indices of the maxima, too (int32, empty except for "max")."""
    if kernel_size == 1:
        return planes, planes.new_empty(0, dtype=torch.int32)
    if pooling == "avg":
        pooled = F.avg_pool2d(planes, kernel_size, kernel_size, kernel_size // 2)
        return pooled, planes.new_empty(0, dtype=torch.int32)
    pooled, indices = F.max_pool2d(planes, kernel_size, kernel_size, kernel_size // 2, return_indices=True)
    return pooled, indices.to(torch.int32)


def pool_target(target: Tensor, like: Tensor, pooling: str, kernel_size: int) -> Tensor:
    """Pool the target: the share of a pooling window's pixels that are of a class, or whether one is.

    Args:
        target: as in `operators.bce_pool`.
        like: (N, C, h, w), with the shape and dtype of the result.
        pooling: "avg" or "max".
        kernel_size: side of a pooling window.
    """
    if target.ndim == 4:
        return pool(target.to(like.dtype), pooling, kernel_size)[0]
    # a pixel has one class, so it is added to its count instead of being compared with all classes
    images, num_classes, height, width = like.shape
    image = torch.arange(images, device=like.device)[:, None, None]
    row, column = (
        (torch.arange(side, device=like.device) + kernel_size // 2) // kernel_size for side in target.shape[1:]
    )
    inside = (target >= 0) & (row < height)[:, None] & (column < width)
    index = ((image * num_classes + target) * height + row[:, None]) * width + column
    counts = like.new_zeros(like.numel())
    counts.scatter_add_(0, index.masked_fill_(~inside, 0).flatten(), inside.flatten().to(like.dtype))
    counts = counts.view(like.shape)
    return counts.clamp_max_(1) if pooling == "max" else counts / kernel_size**2


def empty_outputs(preds: Tensor, pooling: str, kernel_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate pooled probabilities, pooled target and indices with the shapes and dtypes that `bce_pool` returns."""
    batch, num_classes, height, width = preds.shape
    dtype = torch.promote_types(preds.dtype, torch.float32)
    size = [batch, num_classes, *(pooled_size(side, kernel_size) for side in (height, width))]
    pooled = preds.new_empty([0] if pooling == "none" else size, dtype=dtype)
    pooled_target = preds.new_empty(size if pooling in ("avg", "max") else [0], dtype=dtype)
    return pooled, pooled_target, preds.new_empty(size if pooling == "max" else [0], dtype=torch.int32)


def pooled_size(length: int, kernel_size: int) -> int:
    """Pooling windows along a side, with padding kernel_size // 2; pixels at the end may be in none."""
    return (length + 2 * (kernel_size // 2)) // kernel_size


def region_moments(labels: Tensor, probs: Tensor, region_size: int, step: int) -> Tensor:
    """See `operators.region_moments`."""
    size = 2 * region_size**2
    moments = probs.new_empty(*probs.shape[:2], size, size, dtype=torch.float64)
    all_labels, all_probs = labels.flatten(0, 1), probs.flatten(0, 1)
    for planes in _groups(probs, probs.shape[:2].numel(), size * probs.shape[2] * probs.shape[3] // region_size):
        rows = _rows_of_regions(all_labels[planes], all_probs[planes], region_size, step)
        means, count = _offset_means(rows, region_size, step)
        flat = rows.flatten(0, 1)
        of_planes = moments.view(-1, size, size)[planes]
        entries = of_planes.view(-1, *2 * (2, region_size, region_size))  # plane, row and column of both offsets
        for lag in range(region_size):
            # as if the planes were one, which needs no copy; no sum below has a product of rows of two planes
            products = flat[: len(flat) - lag] @ flat[lag:].mT
            products = F.pad(products, (0, 0, 0, 0, 0, lag)).view(*rows.shape[:3], -1)
            for upper in range(region_size - lag):
                # the sum over all regions of the products of their rows `upper` and `upper + lag`
                sums = products[:, _region_rows(rows, upper, region_size, step)].sum(1)
                sums = sums.view(-1, *2 * (2, region_size))
                entries[:, :, upper, :, :, upper + lag] = sums
                entries[:, :, upper + lag, :, :, upper] = sums.permute(0, 3, 4, 1, 2)
        of_planes -= count * means @ means.mT
    return moments


def region_moments_backward(weights: Tensor, labels: Tensor, probs: Tensor, region_size: int, step: int) -> Tensor:
    """See `operators.region_moments`."""
    size = 2 * region_size**2
    grad = torch.empty_like(probs, memory_format=torch.contiguous_format)
    all_labels, all_probs = labels.flatten(0, 1), probs.flatten(0, 1)
    all_weights = weights.flatten(0, 1)
    for planes in _groups(probs, probs.shape[:2].numel(), size * probs.shape[2] * probs.shape[3] // region_size):
        rows = _rows_of_regions(all_labels[planes], all_probs[planes], region_size, step)
        means, _ = _offset_means(rows, region_size, step)
        of_planes = all_weights[planes]
        # the regions of a row are R rows that follow each other: a view (M, rows, 2d, columns), ordered by rows first
        regions = rows.flatten(1, 2).unfold(1, size, step * 2 * region_size).mT
        by_rows = of_planes.reshape(*of_planes.shape[:2], 2, region_size, region_size).transpose(2, 3).flatten(2)
        of_regions = by_rows[:, None] @ regions
        of_regions -= (of_planes @ means)[:, None]
        # a pixel is in several regions, and its gradient is the sum of theirs
        pixels = rows.new_zeros(len(rows), *probs.shape[2:])
        for number in range(region_size**2):
            dy, dx = divmod(number, region_size)
            columns = slice(dx, dx + (rows.shape[3] - 1) * step + 1, step)
            pixels[:, _region_rows(rows, dy, region_size, step), columns] += of_regions[:, :, number]
        grad.view(-1, *probs.shape[2:])[planes] = pixels
    return grad


def _rows_of_regions(labels: Tensor, probs: Tensor, region_size: int, step: int) -> Tensor:
    """Return all rows of [Y; P] at each of R columns: (M, h, w) each to (M, h, 2R, columns of regions), float64."""
    planes = torch.stack([labels, probs], 1).double()
    planes -= planes.mean((2, 3), keepdim=True)  # so that the difference of sums loses no precision
    covered = (planes.shape[3] - region_size) // step * step + 1  # columns from the first to the last region
    shifted = planes.unfold(3, covered, 1)[:, :, :, :region_size, ::step]
    return shifted.transpose(1, 2).flatten(2, 3)


def _region_rows(rows: Tensor, offset: int, region_size: int, step: int) -> slice:
    """Return the rows of pixels that are row `offset` of a region."""
    return slice(offset, offset + (rows.shape[1] - region_size) // step * step + 1, step)


def _offset_means(rows: Tensor, region_size: int, step: int) -> tuple[Tensor, int]:
    """Return the mean of each of the 2d entries over all regions, (M, 2d, 1), and the number of regions."""
    by_offset = [rows[:, _region_rows(rows, offset, region_size, step)] for offset in range(region_size)]
    means = torch.stack([of_offset.mean((1, 3)) for of_offset in by_offset], 1)  # M, R, 2R
    ordered = means.view(-1, region_size, 2, region_size).transpose(1, 2).flatten(1)
    return ordered[..., None], by_offset[0].shape[1] * rows.shape[3]


def _groups(preds: Tensor, number: int, elements: int) -> Iterator[slice]:
    """Yield slices of a number of images or planes to process together; each has that many elements."""
    at_once = max(1, _CACHED_ELEMENTS // max(1, elements)) if preds.device.type == "cpu" else max(1, len(preds))
    for start in range(0, number, at_once):
        yield slice(start, start + at_once)


def _is_class(target: Tensor, number: int, dtype: torch.dtype) -> Tensor:
    """Return (N, H, W) of 0 and 1, 1 at pixels of the class."""
    # compared in place, since a conversion from bool takes several times longer
    return target.to(dtype, copy=True).eq_(number) if target.ndim == 3 else target[:, number].to(dtype)


def _void(target: Tensor) -> Tensor:
    """Return (N, H, W) bool, True at void pixels."""
    return (target if target.ndim == 3 else target[:, 0]) < 0


def _unpool(grad_pooled: Tensor, probs: Tensor, indices: Tensor, pooling: str, kernel_size: int) -> Tensor:
    """Compute the gradient in the probabilities, in new memory."""
    if pooling == "identity":
        return grad_pooled.clone()
    kernel, padding = [kernel_size] * 2, [kernel_size // 2] * 2
    if pooling == "avg":
        grad: Tensor = torch.ops.aten.avg_pool2d_backward(
            grad_pooled, probs, kernel, kernel, padding, False, True, None
        )
        return grad
    grad = torch.zeros_like(probs)
    grad.flatten(1).scatter_(1, indices.flatten(1).long(), grad_pooled.flatten(1))
    return grad
