"""The four ways of making maps smaller before regions are cut from them, and their transposes.

Whatever is pooled, windows do not overlap (the stride is the window's side, the downsampling factor DF), and windows at
the border reach over it by DF // 2 as in the authors' code. Labels are pooled straight from the integers.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from beyondpixel.losses.functional._validation import LabelTruth, MultiHotTruth, Truth


class Pooling(ABC):
    """From (M, H, W) maps to (M, h, w) maps.

    Args:
        factor: downsampling factor DF, at least 1.
    """

    def __init__(self, factor: int) -> None:
        self.factor = factor

    @abstractmethod
    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after pooling; not positive where the maps are smaller than a window."""

    @abstractmethod
    def pool(self, maps: Tensor) -> tuple[Tensor, Tensor | None]:
        """(M, H, W) probabilities to (M, h, w), and what `spread` needs to know about it."""

    @abstractmethod
    def spread(self, grad: Tensor, height: int, width: int, chosen: Tensor | None) -> Tensor:
        """The transpose: the gradient (M, h, w) carried back to (M, H, W)."""

    def pool_truth(self, truth: Truth, num_classes: int, dtype: torch.dtype) -> Tensor:
        """(N, C, h, w) pooled labels."""
        batch, height, width = truth.shape
        pooled = [self.pool(truth.one_hot(image, slice(0, num_classes)).to(dtype))[0] for image in range(batch)]
        return torch.stack(pooled) if pooled else torch.zeros(0, num_classes, *self.size(height, width), dtype=dtype)


class NoPooling(Pooling):
    """Maps as they are."""

    @override
    def size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    @override
    def pool(self, maps: Tensor) -> tuple[Tensor, None]:
        return maps, None

    @override
    def spread(self, grad: Tensor, height: int, width: int, chosen: Tensor | None) -> Tensor:
        return grad


class _WindowPooling(Pooling):
    """Windows of DF × DF pixels, the first of which begins DF // 2 pixels outside the map."""

    @override
    def size(self, height: int, width: int) -> tuple[int, int]:
        padding = self.factor // 2
        return (height + 2 * padding) // self.factor, (width + 2 * padding) // self.factor

    def windows(self, length: int, device: torch.device) -> Tensor:
        """(length,) index of the window that a row or column falls in; the last ones may fall in none."""
        return (torch.arange(length, device=device) + self.factor // 2) // self.factor

    def count_labels(self, truth: LabelTruth, num_classes: int) -> Tensor:
        """(N, C, h, w) float32: how many pixels of each window bear the label."""
        batch, height, width = truth.shape
        small_height, small_width = self.size(height, width)
        device = truth.labels.device
        row, column = self.windows(height, device)[:, None], self.windows(width, device)[None, :]
        map_size = small_height * small_width
        index = (row * small_width + column) + truth.labels.clamp(0, num_classes - 1).long() * map_size
        index += torch.arange(batch, device=device)[:, None, None] * (num_classes * map_size)
        counted = truth.valid & ((row < small_height) & (column < small_width))
        total = batch * num_classes * map_size
        # what is not counted goes to one slot more; whole numbers add exactly, so the order does not matter
        index = torch.where(counted, index, total).flatten()
        counts = torch.zeros(total + 1, dtype=torch.float32, device=device)
        counts.scatter_add_(0, index, torch.ones(1, device=device).expand(index.numel()))
        return counts[:total].view(batch, num_classes, small_height, small_width)


class AveragePooling(_WindowPooling):
    """Mean over the window, pixels outside the map counting as 0."""

    @override
    def pool(self, maps: Tensor) -> tuple[Tensor, None]:
        return F.avg_pool2d(maps[None], self.factor, self.factor, self.factor // 2)[0], None

    @override
    def spread(self, grad: Tensor, height: int, width: int, chosen: Tensor | None) -> Tensor:
        # one row and column of zeros more, for the pixels that fall in no window
        padded = F.pad(grad, (0, 1, 0, 1)) / self.factor**2
        rows, columns = self.windows(height, grad.device), self.windows(width, grad.device)
        return padded.index_select(1, rows).index_select(2, columns)

    @override
    def pool_truth(self, truth: Truth, num_classes: int, dtype: torch.dtype) -> Tensor:
        if not isinstance(truth, LabelTruth):
            return super().pool_truth(truth, num_classes, dtype)
        return self.count_labels(truth, num_classes).to(dtype) / self.factor**2


class MaxPooling(_WindowPooling):
    """Largest value in the window."""

    @override
    def pool(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        pooled, chosen = F.max_pool2d(maps[None], self.factor, self.factor, self.factor // 2, return_indices=True)
        return pooled[0], chosen[0]

    @override
    def spread(self, grad: Tensor, height: int, width: int, chosen: Tensor | None) -> Tensor:
        if chosen is None:
            raise ValueError("chosen: expected the positions that pool returned, got None")
        maps = torch.zeros(len(grad), height * width, dtype=grad.dtype, device=grad.device)
        return maps.scatter_(1, chosen.flatten(1), grad.flatten(1)).view(-1, height, width)

    @override
    def pool_truth(self, truth: Truth, num_classes: int, dtype: torch.dtype) -> Tensor:
        if not isinstance(truth, LabelTruth):
            return super().pool_truth(truth, num_classes, dtype)
        return (self.count_labels(truth, num_classes) > 0).to(dtype)


class Interpolation(Pooling):
    """Probabilities bilinear with aligned corners, labels nearest, to the size (H // DF, W // DF)."""

    @override
    def size(self, height: int, width: int) -> tuple[int, int]:
        return height // self.factor, width // self.factor

    @override
    def pool(self, maps: Tensor) -> tuple[Tensor, None]:
        size = self.size(*maps.shape[1:])
        return F.interpolate(maps[None], size, mode="bilinear", align_corners=True)[0], None

    @override
    def spread(self, grad: Tensor, height: int, width: int, chosen: Tensor | None) -> Tensor:
        shape = (1, grad.shape[0], height, width)
        backward = torch.ops.aten.upsample_bilinear2d_backward
        maps: Tensor = backward(grad[None], list(grad.shape[1:]), list(shape), True)[0]
        return maps

    @override
    def pool_truth(self, truth: Truth, num_classes: int, dtype: torch.dtype) -> Tensor:
        size = self.size(*truth.shape[1:])
        if isinstance(truth, MultiHotTruth):
            return F.interpolate(truth.multi_hot.to(dtype), size, mode="nearest")
        assert isinstance(truth, LabelTruth)
        labels = F.interpolate(truth.labels[:, None].float(), size, mode="nearest")
        classes = torch.arange(num_classes, device=labels.device)[:, None, None]
        return (labels == classes).to(dtype)


POOLINGS: dict[str, type[Pooling]] = {
    "avg": AveragePooling,
    "max": MaxPooling,
    "interp": Interpolation,
    "stride": NoPooling,
}


def build_pooling(name: str, factor: int) -> tuple[Pooling, int]:
    """The pooling, and the step from one region to the next on the pooled maps."""
    if name == "stride":
        return NoPooling(factor), factor
    return (NoPooling(1) if factor == 1 else POOLINGS[name](factor)), 1
