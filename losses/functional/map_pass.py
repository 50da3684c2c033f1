"""The full-size work of BCE and RMI, fused: the scores are read once forward and once backward.

A band of rows at a time, so that nothing as large as the scores is ever made but their gradient, and what is made
stays in the cache.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from beyondpixel.losses.functional._validation import Truth
from beyondpixel.losses.functional.chunks import chunks
from beyondpixel.losses.functional.large_pages import empty_gradient
from beyondpixel.losses.functional.rmi.pooling import AverageWindows, Windows
from beyondpixel.losses.functional.scratch import Scratch

# numbers between ½ and 1 whose product is still far from the smallest float32
_FACTORS = 64


class MapPass(torch.autograd.Function):
    """From scores (N, C, H, W) to the summed BCE (float64 scalar) and the pooled probabilities (N, C, h, w).

    Without `pixel` the first is 0, without `windows` the second is None.
    """

    @staticmethod
    @override
    def forward(
        ctx: Any, scores: Tensor, truth: Truth, with_logits: bool, pixel: bool, windows: Windows | None
    ) -> tuple[Tensor, Tensor | None]:
        total = torch.zeros((), dtype=torch.float64, device=scores.device)
        pooled, all_chosen = None, []
        if windows is not None:
            size = windows.size(*scores.shape[2:])
            pooled = torch.empty(*scores.shape[:2], *size, dtype=_dtype(scores), device=scores.device)
        scratch = Scratch(scores.device)
        for band in _bands(scores, windows):
            maps = band.read(scores)
            padded, probs = (windows or AverageWindows(1)).frame(maps, band.top(windows), scratch)
            if with_logits:
                torch.sigmoid(maps, out=probs)
            else:
                probs.copy_(maps)
            if pixel:
                total += _cross_entropy_sum(maps, probs, truth, band, with_logits=with_logits, scratch=scratch)
            if windows is not None and pooled is not None:
                valid = band.valid(truth, probs.dtype)
                if valid is not None:
                    probs *= valid
                height, width = (band.window_rows.stop - band.window_rows.start), pooled.shape[3]
                padded = padded[:, :, : height * windows.factor, : width * windows.factor]
                reduced, chosen = windows.reduce(padded, band.top(windows), scratch)
                pooled[band.images, :, band.window_rows] = reduced
                all_chosen.append(chosen)
        ctx.save_for_backward(scores, *all_chosen)
        ctx.truth, ctx.with_logits, ctx.pixel, ctx.windows = truth, with_logits, pixel, windows
        return total, pooled

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, grad_pooled: Tensor | None) -> tuple[Tensor | None, ...]:
        scores, *all_chosen = ctx.saved_tensors
        truth: Truth = ctx.truth
        windows: Windows | None = ctx.windows if grad_pooled is not None else None
        chosen = iter(all_chosen)
        grad = empty_gradient(scores)
        scratch = Scratch(scores.device)
        with torch.autocast(scores.device.type, enabled=False):
            for band in _bands(scores, ctx.windows):
                maps = band.read(scores)
                probs = scratch.like("probs", maps)
                torch.sigmoid(maps, out=probs) if ctx.with_logits else probs.copy_(maps)
                into = grad[band.images, :, band.rows]
                region = into if into.dtype == probs.dtype else scratch.like("region", probs)
                if windows is not None and grad_pooled is not None:
                    part = grad_pooled[band.images, :, band.window_rows]
                    windows.write_gradient(
                        region,
                        part,
                        next(chosen),
                        probs=probs,
                        top=band.top(windows),
                        with_logits=ctx.with_logits,
                        scratch=scratch,
                    )
                else:
                    region.zero_()
                if ctx.pixel:
                    slope = None if ctx.with_logits else (1 - probs).mul_(probs).clamp_min_(1e-12)
                    difference = truth.replace(probs, probs, band.images, band.rows, lambda values: values - 1)
                    if slope is not None:
                        difference /= slope
                    region.addcmul_(difference, grad_total.to(difference.dtype))
                valid = band.valid(truth, region.dtype)
                if valid is not None:
                    region *= valid
                if region is not into:
                    into.copy_(region)
        return grad, None, None, None, None


class _Band(NamedTuple):
    """Some images, or some rows of one.

    Attributes:
        images: of the batch.
        rows: of the scores.
        window_rows: rows of windows that lie in the band.
    """

    images: slice
    rows: slice
    window_rows: slice

    def read(self, scores: Tensor) -> Tensor:
        """(B, C, rows, W) in at least float32, the last two axes contiguous; to be read only."""
        part = scores[self.images, :, self.rows]
        if part.dtype == _dtype(scores) and part.stride()[2:] == (part.shape[3], 1):
            return part
        return part.to(_dtype(scores), copy=True, memory_format=torch.contiguous_format)

    def top(self, windows: Windows | None) -> int:
        """How many rows of the first windows lie above the map."""
        return 0 if windows is None else max(0, windows.padding - self.window_rows.start * windows.factor)

    def valid(self, truth: Truth, dtype: torch.dtype) -> Tensor | None:
        """(B, 1, rows, W), 1 where the pixel counts and 0 where it is void; None where all count."""
        if truth.valid is None or not truth.may_have_void:
            return None
        return truth.valid[self.images, None, self.rows].to(dtype)


def _dtype(scores: Tensor) -> torch.dtype:
    return torch.promote_types(scores.dtype, torch.float32)


def _bands(scores: Tensor, windows: Windows | None) -> Iterator[_Band]:
    batch, channels, height, width = scores.shape
    windows = windows or AverageWindows(1)
    count = windows.size(height, width)[0]
    bytes_each = channels * width * windows.factor * _dtype(scores).itemsize
    for images in chunks(batch, count * bytes_each, scores.device):
        whole = images.stop - images.start > 1
        for window_rows in [slice(0, count)] if whole else chunks(count, bytes_each, scores.device):
            start = max(0, window_rows.start * windows.factor - windows.padding)
            stop = height if window_rows.stop == count else window_rows.stop * windows.factor - windows.padding
            yield _Band(images, slice(start, stop), window_rows)


def _cross_entropy_sum(
    maps: Tensor, probs: Tensor, truth: Truth, band: _Band, *, with_logits: bool, scratch: Scratch
) -> Tensor:
    if with_logits:
        # the loss is max(x, 0) - log σ(|x|) where the label is 0, and the same of -x where it is 1. Classes share
        # logarithms; what a product rounds away is some 1e-7 of a pixel's loss, and not of a class's
        above = torch.clamp_min(maps, 0, out=scratch.like("above", maps))
        by_pixel = truth.replace(above, maps, band.images, band.rows, lambda values: -values.clamp_max(0)).sum(1)
        sure = torch.sub(1, probs, out=scratch.like("sure", probs))
        torch.maximum(sure, probs, out=sure)
        for part in torch.split(sure, _FACTORS, 1):
            by_pixel -= part.prod(1).log_()
    else:
        # as in torch the logarithm ends at -100, so a wrong probability of exactly 0 costs 100 and not infinity
        log_probs = truth.replace(torch.log1p(-maps), maps, band.images, band.rows, torch.log)
        by_pixel = -log_probs.clamp_min_(-100).sum(1)
    valid = band.valid(truth, by_pixel.dtype)
    if valid is not None:
        by_pixel *= valid[:, 0]
    return by_pixel.sum(dtype=torch.float64)
