"""Class means of upsampled features, computed without upsampling them."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.lightning_modules.networks.bilinear import BilinearUpsampling
from beyondpixel.lightning_modules.networks.distributed import sum_over_processes

# Weights of the cosine strategy. A pixel's 1 - cos below _ROUNDING is rounding error and counts as 0, stored as _ZERO:
# negligible beside any nonzero weight, and where all weights are 0 it makes them equal, that is, the mean.
_ROUNDING = 1e-12
_ZERO = 1e-30
_NORM_FLOOR = 1e-8  # as torch.nn.functional.cosine_similarity
# Values processed at once: sized for a CPU's cache; other devices are faster with few large steps.
_CPU_BLOCK, _DEVICE_BLOCK = 2**17, 2**24


def class_means(
    features: Tensor, target: Tensor, num_classes: int, *, ignore_index: int, reference: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the weighted mean of upsampled features over the pixels of each class, without upsampling them.

    Bilinear upsampling is linear: r = Uf. So Σ_i w_i r_i = (Uᵀw)ᵀ f, the features times the weights pulled back through
    the transpose of the interpolation. The weights also need the cosine of r with a reference: r·M is the upsampled map
    of f·M, and the norm of r is a quadratic form (see `BilinearUpsampling.squared_norms`).

    Args:
        features: (N, C, h, w), floating point, any memory format. Computed in float64.
        target: (N, H, W) integer labels; values other than 0 … K-1 count as void.
        num_classes: K.
        ignore_index: label of the void pixels.
        reference: (K, S, C) float64. A pixel of class k counts for the slot s whose reference[k, s] has the highest
            cosine with its feature (the first, if equal), with the weight 1 - cos. A row of zeros has the cosine 0.
            None: one slot, all weights 1.

    Returns:
        (K, S, C) float64, Σ w · r / Σ w over the pixels of all processes, 0 where there are none; and a mask (K, S) of
        those with pixels, all false if any feature is not finite. Every process must call this if torch.distributed is
        initialized.

    Example:
        >>> means, present = class_means(torch.ones(1, 3, 2, 2), torch.tensor([[[0, 0, 255]]]), 2, ignore_index=255)
        >>> means.tolist(), present.tolist()
        ([[[1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]]], [[True], [False]])
    """
    _, channels, height, width = features.shape
    slots = 1 if reference is None else reference.shape[1]
    upsampling = BilinearUpsampling((height, width), (target.shape[1], target.shape[2]), features.device)
    units = None
    if reference is not None:  # with norm 1, and zeros for the void pixels
        units = F.pad(reference / reference.norm(dim=-1, keepdim=True).clamp_min(_NORM_FLOOR), (0, 0, 0, 0, 0, 1))
    rows = (num_classes + 1) * slots  # void pixels are the last class, which is dropped
    sums = torch.zeros(rows, channels, dtype=torch.float64, device=features.device)
    weight_sums, pixels = sums.new_zeros(rows), sums.new_zeros(rows)
    for image, labels in zip(features, target.long(), strict=True):
        void = (labels == ignore_index) | (labels < 0) | (labels >= num_classes)
        row = labels.masked_fill(void, num_classes) * slots
        weights = None
        if units is not None:
            slot, cosine = _nearest_slot(image, row, units, upsampling)
            row = row + slot if slots > 1 else row
            weights = 1 - cosine
            weights.masked_fill_(weights < _ROUNDING, _ZERO)
        shares = upsampling.pull_back(weights, row * (height * width) + upsampling.cell, rows).flatten(1)
        for start, block in _channel_blocks(image):
            sums[:, start : start + len(block)] += shares @ block.flatten(1).T
        weight_sums += shares.sum(1)
        pixels.index_add_(0, row.flatten(), sums.new_ones(()).expand(row.numel()))
    sums, weight_sums, pixels = sum_over_processes(sums, weight_sums, pixels)
    shape = (num_classes + 1, slots)
    sums, weight_sums, pixels = sums.view(*shape, channels)[:-1], weight_sums.view(shape)[:-1], pixels.view(shape)[:-1]
    means = sums / torch.where(pixels > 0, weight_sums, 1).unsqueeze(-1)
    return means, (pixels > 0) & sums.isfinite().all()


def _nearest_slot(image: Tensor, row: Tensor, units: Tensor, upsampling: BilinearUpsampling) -> tuple[Tensor, Tensor]:
    """Slot (H, W) of the pixel's class with the highest cosine, and that cosine."""
    rows, (height, width) = units.shape[0] * units.shape[1], upsampling.map_size
    products = torch.zeros(rows, height * width, dtype=torch.float64, device=image.device)
    for start, block in _channel_blocks(image):
        products.addmm_(units[..., start : start + len(block)].flatten(0, 1), block.flatten(1))
    table = upsampling.coefficients(products.view(rows, height, width))
    best = upsampling.interpolate(table, row * (height * width) + upsampling.cell)
    slot = torch.zeros_like(row)
    for number in range(1, units.shape[1]):
        product = upsampling.interpolate(table, (row + number) * (height * width) + upsampling.cell)
        slot.masked_fill_(product > best, number)
        best = torch.maximum(best, product)
    norms = upsampling.squared_norms(block for _, block in _channel_blocks(image)).sqrt_()
    return slot, best / norms.clamp_(min=_NORM_FLOOR)


def _channel_blocks(image: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield blocks of channels of (C, h, w) in float64, with the index of the first channel."""
    size = _CPU_BLOCK if image.device.type == "cpu" else _DEVICE_BLOCK
    step = max(size // (image.shape[1] * image.shape[2]), 1)
    for start in range(0, image.shape[0], step):
        yield start, image[start : start + step].to(torch.float64, memory_format=torch.contiguous_format)
