"""The ways of making maps smaller before regions are cut from them, and their transposes.

Windows do not overlap (the stride is the window's side, the downsampling factor DF), and as in the authors' code the
first begins DF // 2 pixels outside the map. Labels are pooled straight from the integers.

"interp" and "stride" work on maps that are not pooled in windows: they take windows of one pixel here, and what they do
then is in `lower_bound.py`.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from beyondpixel.losses.functional._validation import LabelTruth, MultiHotTruth, Truth


class Windows(ABC):
    """Geometry of the windows, and what is made of the values in one.

    Args:
        factor: side of a window, the downsampling factor DF, at least 1.
    """

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.padding = factor // 2

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Number of windows below and beside each other; pixels at the end may fall in none."""
        return (height + 2 * self.padding) // self.factor, (width + 2 * self.padding) // self.factor

    @abstractmethod
    def reduce(self, padded: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, m DF, w DF) to (B, C, m, w), and what `spread` needs to know about it."""

    @abstractmethod
    def spread(self, grad: Tensor, chosen: Tensor | None, rows: slice, columns: slice) -> Tensor:
        """The transpose: (B, C, m, w) to some rows and columns of (B, C, m DF, w DF)."""

    @abstractmethod
    def from_counts(self, counts: Tensor) -> Tensor:
        """What `reduce` makes of a one-hot map that has so many ones in each window."""


class AverageWindows(Windows):
    """Mean over the window, pixels outside the map counting as 0."""

    @override
    def reduce(self, padded: Tensor) -> tuple[Tensor, None]:
        factor = self.factor
        if factor == 1:
            return padded, None
        batch, channels, height, width = padded.shape
        rows = padded.view(batch, channels, height // factor, factor, width).sum(3)
        rows = rows.view(batch, channels, height // factor, width // factor, factor)
        # several times faster than a sum over so short an axis
        total = rows[..., 0] + rows[..., 1]
        for column in range(2, factor):
            total += rows[..., column]
        return total.div_(factor**2), None

    @override
    def spread(self, grad: Tensor, chosen: Tensor | None, rows: slice, columns: slice) -> Tensor:
        if self.factor == 1:
            return grad[:, :, rows, columns]
        wide = (grad / self.factor**2)[..., None].expand(*grad.shape, self.factor).flatten(3)
        window_of_row = torch.arange(rows.start, rows.stop, device=grad.device) // self.factor
        return wide[..., columns].index_select(2, window_of_row)

    @override
    def from_counts(self, counts: Tensor) -> Tensor:
        return counts / self.factor**2


class MaxWindows(Windows):
    """Largest value in the window; values are never below 0, the value outside the map."""

    @override
    def reduce(self, padded: Tensor) -> tuple[Tensor, Tensor]:
        # aten's max_pool2d takes four times as long on a CPU
        batch, channels, height, width = padded.shape
        largest, row = _largest(padded.view(batch, channels, height // self.factor, self.factor, width), 3)
        largest, column = _largest(largest.view(*largest.shape[:3], width // self.factor, self.factor), 4)
        row = row.view(*column.shape, self.factor).gather(4, column[..., None].long())[..., 0]
        return largest, row * self.factor + column

    @override
    def spread(self, grad: Tensor, chosen: Tensor | None, rows: slice, columns: slice) -> Tensor:
        if chosen is None:
            raise ValueError("chosen: expected the positions that reduce returned, got None")
        factor = self.factor
        batch, channels, height, width = grad.shape
        first = torch.arange(height, device=grad.device)[:, None] * factor**2 * width
        first = first + torch.arange(width, device=grad.device) * factor
        within = chosen.long()
        index = first + within // factor * (factor * width) + within % factor
        flat = grad.new_zeros(batch, channels, height * width * factor**2)
        flat.scatter_(2, index.flatten(2), grad.flatten(2))
        return flat.view(batch, channels, height * factor, width * factor)[:, :, rows, columns]

    @override
    def from_counts(self, counts: Tensor) -> Tensor:
        return counts > 0


def _largest(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Largest value along a short axis, and the place (int16) of the first that is as large."""
    largest, place = values.select(dim, 0), values.new_zeros((), dtype=torch.int16)
    for candidate in range(1, values.shape[dim]):
        value = values.select(dim, candidate)
        place = torch.maximum(place, (value > largest).to(torch.int16).mul_(candidate))
        largest = torch.maximum(largest, value)
    return largest, place


def count_labels(truth: LabelTruth, num_classes: int, windows: Windows) -> Tensor:
    """(N, C, h, w) float32: how many pixels of each window bear the label."""
    batch, height, width = truth.shape
    device = truth.labels.device
    small_height, small_width = windows.size(height, width)
    row = ((torch.arange(height, device=device) + windows.padding) // windows.factor)[:, None]
    column = (torch.arange(width, device=device) + windows.padding) // windows.factor
    image = torch.arange(batch, device=device)[:, None, None]
    channel = image * num_classes + truth.labels.clamp(0, num_classes - 1)
    index = channel * (small_height * small_width) + (row * small_width + column)
    # what is not counted goes to one slot more; whole numbers add exactly, so their order does not matter
    total = batch * num_classes * small_height * small_width
    counted = truth.valid & ((row < small_height) & (column < small_width))
    index = torch.where(counted, index, total).flatten()
    counts = torch.zeros(total + 1, dtype=torch.float32, device=device)
    counts.scatter_add_(0, index, torch.ones(1, device=device).expand(index.numel()))
    return counts[:total].view(batch, num_classes, small_height, small_width)


def pool_truth(truth: Truth, num_classes: int, windows: Windows, dtype: torch.dtype) -> Tensor:
    """(N, C, h, w) pooled labels."""
    if isinstance(truth, MultiHotTruth):
        padding = windows.padding
        height, width = windows.size(*truth.shape[1:])
        padded = F.pad(truth.multi_hot.to(dtype), (padding, windows.factor, padding, windows.factor))
        return windows.reduce(padded[:, :, : height * windows.factor, : width * windows.factor].contiguous())[0]
    assert isinstance(truth, LabelTruth)
    return windows.from_counts(count_labels(truth, num_classes, windows).to(dtype)).to(dtype)
