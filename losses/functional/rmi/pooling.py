"""The ways of making maps smaller before regions are cut from them, and their transposes.

Windows do not overlap (the stride is the window's side, the downsampling factor DF), and as in the authors' code the
first begins DF // 2 pixels outside the map. Labels are pooled straight from the integers.

"interp" and "stride" work on maps that are not pooled in windows: they take windows of one pixel here, and what they do
then is in `lower_bound.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from beyondpixel.losses.functional._validation import LabelTruth, MultiHotTruth, Truth
from beyondpixel.losses.functional.scratch import Scratch


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

    def frame(self, maps: Tensor, top: int, scratch: Scratch) -> tuple[Tensor, Tensor]:
        """Room for maps laid out in whole windows.

        Args:
            maps: (B, C, rows, W), a band of rows.
            top: rows of the first windows that lie above it.
            scratch: where the room is.

        Returns:
            The room, 0 outside the map, at least as large as its windows, and the (B, C, rows, W) part of it that is
            the map, not filled.
        """
        batch, channels, height, width = maps.shape
        stop, right = top + height, self.padding + width
        whole = -(-stop // self.factor) * self.factor, -(-right // self.factor) * self.factor
        room = scratch.take("room", (batch, channels, *whole), maps.dtype)
        for margin in (room[:, :, :top], room[:, :, stop:], room[..., : self.padding], room[..., right:]):
            margin.zero_()
        return room, room[:, :, top:stop, self.padding : right]

    @abstractmethod
    def reduce(self, padded: Tensor, top: int, scratch: Scratch) -> tuple[Tensor, Tensor | None]:
        """(B, C, m DF, w DF) to (B, C, m, w), and what `write_gradient` needs to know about it."""

    @abstractmethod
    def write_gradient(
        self,
        into: Tensor,
        grad: Tensor,
        chosen: Tensor | None,
        *,
        probs: Tensor,
        top: int,
        with_logits: bool,
        scratch: Scratch,
    ) -> None:
        """From the gradient of the pooled probabilities to that of the scores.

        Args:
            into: (B, C, rows, W), all of it is written.
            grad: (B, C, m, w).
            chosen: as `reduce` returned it.
            probs: (B, C, rows, W).
            top: as for `frame`.
            with_logits: whether the scores are logits, or the probabilities themselves.
            scratch: for what lies between.
        """

    @abstractmethod
    def from_counts(self, counts: Tensor) -> Tensor:
        """What `reduce` makes of a one-hot map that has so many ones in each window."""


class AverageWindows(Windows):
    """Mean over the window, pixels outside the map counting as 0."""

    @override
    def reduce(self, padded: Tensor, top: int, scratch: Scratch) -> tuple[Tensor, None]:
        factor = self.factor
        if factor == 1:
            return padded, None
        batch, channels, height, width = padded.shape
        by_window = padded.view(batch, channels, height // factor, factor, width)
        rows = scratch.take("rows", (batch, channels, height // factor, width), padded.dtype)
        rows = torch.sum(by_window, 3, out=rows).view(*rows.shape[:3], width // factor, factor)
        # several times faster than a sum over so short an axis
        total = rows[..., 0] + rows[..., 1]
        for column in range(2, factor):
            total += rows[..., column]
        return total.div_(factor**2), None

    @override
    def write_gradient(
        self,
        into: Tensor,
        grad: Tensor,
        chosen: Tensor | None,
        *,
        probs: Tensor,
        top: int,
        with_logits: bool,
        scratch: Scratch,
    ) -> None:
        width = into.shape[3]
        if self.factor > 1:
            wide = scratch.take("wide", (*grad.shape, self.factor), grad.dtype)
            grad = wide.copy_((grad / self.factor**2)[..., None]).flatten(3)[..., self.padding :]
            if grad.shape[3] < width:
                grad = F.pad(grad, (0, width - grad.shape[3]))  # pixels in no window
            grad = grad[..., :width]
        stop = 0
        for windows, rows in self._whole_rows(top, into.shape[2], grad.shape[2]):
            count, stop = windows.stop - windows.start, rows.stop
            by_window = grad[:, :, windows, None]
            shape = (*into.shape[:2], count, (rows.stop - rows.start) // count, width)
            part = into[:, :, rows].view(shape)
            if with_logits:
                torch.ops.aten.sigmoid_backward.grad_input(by_window, probs[:, :, rows].view(shape), grad_input=part)
            else:
                part.copy_(by_window)
        into[:, :, stop:] = 0

    def _whole_rows(self, top: int, height: int, count: int) -> Iterator[tuple[slice, slice]]:
        """Windows below each other that hold equally many rows of the map, and these rows."""
        first = 1 if top > 0 else 0
        whole = max(first, min(count, (height + top) // self.factor))
        for start, stop in ((0, first), (first, whole), (whole, count)):
            rows = slice(max(0, start * self.factor - top), min(height, stop * self.factor - top))
            if stop > start:
                yield slice(start, stop), rows

    @override
    def from_counts(self, counts: Tensor) -> Tensor:
        return counts / self.factor**2


class MaxWindows(Windows):
    """Largest value in the window; values are never below 0, the value outside the map."""

    @override
    def reduce(self, padded: Tensor, top: int, scratch: Scratch) -> tuple[Tensor, Tensor]:
        # aten's max_pool2d takes four times as long on a CPU
        batch, channels, height, width = padded.shape
        largest, row = _largest(padded.view(batch, channels, height // self.factor, self.factor, width), 3)
        largest, column = _largest(largest.view(*largest.shape[:3], width // self.factor, self.factor), 4)
        # where nothing is above 0, a pixel of the map is chosen and not the 0 outside
        column[..., 0].clamp_(min=self.padding)
        row = row.view(*column.shape, self.factor).gather(4, column[..., None].long())[..., 0]
        row[:, :, 0].clamp_(min=top)
        return largest, torch.stack([row, column])

    @override
    def write_gradient(
        self,
        into: Tensor,
        grad: Tensor,
        chosen: Tensor | None,
        *,
        probs: Tensor,
        top: int,
        with_logits: bool,
        scratch: Scratch,
    ) -> None:
        if chosen is None:
            raise ValueError("chosen: expected the positions that reduce returned, got None")
        # one pixel of a window has all of its gradient
        row, column = chosen
        width = into.shape[3]
        corner_row = torch.arange(grad.shape[2], device=grad.device)[:, None] * self.factor - top
        corner = corner_row * width + torch.arange(grad.shape[3], device=grad.device) * self.factor - self.padding
        index = torch.add(corner, row, alpha=width).add_(column).flatten(2)
        grad = grad.flatten(2)
        if with_logits:
            grad = torch.ops.aten.sigmoid_backward(grad, probs.flatten(2).gather(2, index))
        into.zero_()
        into.view(*into.shape[:2], -1).scatter_(2, index, grad)

    @override
    def from_counts(self, counts: Tensor) -> Tensor:
        return counts > 0


def _largest(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Largest value along a short axis, and the place of the first that is as large."""
    largest = values.select(dim, 0)
    dtype = torch.uint8 if values.shape[dim] <= 256 else torch.int16
    place = largest.new_zeros((), dtype=dtype)
    for candidate in range(1, values.shape[dim]):
        value = values.select(dim, candidate)
        larger = value > largest
        larger = larger.view(torch.uint8) if dtype == torch.uint8 else larger.to(dtype)
        place = torch.maximum(place, larger.mul_(candidate))
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
    reached = tuple(count * windows.factor - windows.padding for count in (small_height, small_width))
    if truth.may_have_void or reached[0] < height or reached[1] < width:
        counted = truth.valid & ((row < small_height) & (column < small_width))
        index = torch.where(counted, index, total)
    index = index.flatten()
    counts = torch.zeros(total + 1, dtype=torch.float32, device=device)
    counts.scatter_add_(0, index, torch.ones(1, device=device).expand(index.numel()))
    return counts[:total].view(batch, num_classes, small_height, small_width)


def pool_truth(truth: Truth, num_classes: int, windows: Windows, dtype: torch.dtype) -> Tensor:
    """(N, C, h, w) pooled labels."""
    if isinstance(truth, MultiHotTruth):
        padding = windows.padding
        height, width = windows.size(*truth.shape[1:])
        padded = F.pad(truth.multi_hot.to(dtype), (padding, windows.factor, padding, windows.factor))
        padded = padded[:, :, : height * windows.factor, : width * windows.factor]
        return windows.reduce(padded, padding, Scratch(padded.device))[0]
    assert isinstance(truth, LabelTruth)
    return windows.from_counts(count_labels(truth, num_classes, windows).to(dtype)).to(dtype)
