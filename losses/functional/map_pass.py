"""The full-size work of BCE and RMI, fused: the scores are read once forward and once backward.

A band of rows at a time, so that nothing as large as the scores is ever made but their gradient, and what is made
stays in the cache.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from typing_extensions import override

from beyondpixel.losses.functional._validation import Truth
from beyondpixel.losses.functional.chunks import chunks
from beyondpixel.losses.functional.rmi.pooling import AverageWindows, Windows


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
        for band in _bands(scores, windows):
            maps = band.read(scores)
            if windows is not None and pooled is not None:
                probs = band.pad(maps.sigmoid() if with_logits else maps, truth, windows)
                pooled[band.images, :, band.window_rows], chosen = windows.reduce(probs)
                all_chosen.append(chosen)
            if pixel:
                total += _cross_entropy_sum(maps, truth, band, with_logits)
        ctx.save_for_backward(scores, *all_chosen)
        ctx.truth, ctx.with_logits, ctx.pixel, ctx.windows = truth, with_logits, pixel, windows
        return total, pooled

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, grad_pooled: Tensor | None) -> tuple[Tensor | None, ...]:
        scores, *all_chosen = ctx.saved_tensors
        truth: Truth = ctx.truth
        chosen = iter(all_chosen)
        grad = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
        with torch.autocast(scores.device.type, enabled=False):
            for band in _bands(scores, ctx.windows):
                maps = band.read(scores)
                probs = maps.sigmoid_() if ctx.with_logits else maps
                slope = (1 - probs).mul_(probs)
                region = slope if ctx.with_logits else torch.ones_like(slope)
                if ctx.windows is not None and grad_pooled is not None:
                    band.scale(region, grad_pooled, ctx.windows, next(chosen))
                else:
                    region = torch.zeros_like(maps)
                if ctx.pixel:
                    difference = truth.replace(probs, probs, band.images, band.rows, lambda values: values - 1)
                    if not ctx.with_logits:
                        difference = difference / slope.clamp_min(1e-12)
                    region += difference * grad_total.to(difference.dtype)
                if truth.valid is not None:
                    region *= truth.valid[band.images, None, band.rows]
                grad[band.images, :, band.rows] = region
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
        """A fresh contiguous (B, C, rows, W) copy, in at least float32."""
        part = scores[self.images, :, self.rows]
        return part.to(_dtype(scores), copy=True, memory_format=torch.contiguous_format)

    def _place(self, windows: Windows, shape: torch.Size) -> tuple[slice, slice, slice, slice]:
        """Where the pixels lie in the padded windows (rows, columns), and which pixels these are (rows, columns)."""
        top = max(0, windows.padding - self.window_rows.start * windows.factor)
        rows = min((self.window_rows.stop - self.window_rows.start) * windows.factor - top, shape[2])
        columns = min(windows.size(1, shape[3])[1] * windows.factor - windows.padding, shape[3])
        return (
            slice(top, top + rows),
            slice(windows.padding, windows.padding + columns),
            slice(0, rows),
            slice(0, columns),
        )

    def pad(self, probs: Tensor, truth: Truth, windows: Windows) -> Tensor:
        """Probabilities laid out in whole windows, 0 where void or outside the map."""
        batch, channels = probs.shape[:2]
        height = (self.window_rows.stop - self.window_rows.start) * windows.factor
        width = windows.size(1, probs.shape[3])[1] * windows.factor
        rows, columns, from_rows, from_columns = self._place(windows, probs.shape)
        padded = probs.new_zeros(batch, channels, height, width)
        target = padded[:, :, rows, columns]
        if truth.valid is None:
            target.copy_(probs[:, :, from_rows, from_columns])
        else:
            valid = truth.valid[self.images, None, self.rows].to(probs.dtype)
            torch.mul(probs[:, :, from_rows, from_columns], valid[:, :, from_rows, from_columns], out=target)
        return padded

    def scale(self, maps: Tensor, grad_pooled: Tensor, windows: Windows, chosen: Tensor | None) -> None:
        """Multiply maps in place by the gradient of the probabilities, given that of the pooled ones."""
        rows, columns, to_rows, to_columns = self._place(windows, maps.shape)
        grad = grad_pooled[self.images, :, self.window_rows]
        maps[:, :, to_rows, to_columns] *= windows.spread(grad, chosen, rows, columns)
        # pixels in no window
        maps[:, :, to_rows.stop :] = 0
        maps[:, :, :, to_columns.stop :] = 0


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


def _cross_entropy_sum(maps: Tensor, truth: Truth, band: _Band, with_logits: bool) -> Tensor:
    if with_logits:
        # softplus(x) where the label is 0, softplus(-x) where it is 1; from the threshold on, softplus(x) is x
        signed = truth.replace(maps, maps, band.images, band.rows, torch.neg)
        losses = F.softplus(signed, threshold=40 if maps.dtype == torch.float64 else 20)
    else:
        # as in torch the logarithm ends at -100, so a wrong probability of exactly 0 costs 100 and not infinity
        log_probs = truth.replace(torch.log1p(-maps), maps, band.images, band.rows, torch.log)
        losses = -log_probs.clamp_min_(-100)
    by_pixel = losses.sum(1)
    if truth.valid is not None:
        by_pixel *= truth.valid[band.images, band.rows]
    return by_pixel.sum(dtype=torch.float64)
