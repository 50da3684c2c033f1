"""Sliding-window inference: images larger than the training crops, in overlapping crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from beyondpixel.experiments.inference.probabilities import to_logits, to_probs

DEFAULT_OVERLAP = 1 / 3
LARGEST_SIZE = 65535


@dataclass(frozen=True)
class SlidingWindow:
    """Probabilities of crops of one size, averaged where crops overlap.

    The last crop of a row or column is moved back so that it ends at the border. An image that is smaller than the crop
    in one direction is covered whole in that direction, without padding.

    Args:
        size: height and width of the crops, in pixels.
        overlap: minimum share of a crop that the next one covers as well; 0 to below 1.

    Raises:
        ValueError: if size or overlap is out of range.

    Example:
        >>> import torch
        >>> SlidingWindow(32)(torch.ones(1, 3, 50, 70), lambda crop: crop[:, :2]).shape
        torch.Size([1, 2, 50, 70])
    """

    size: int
    overlap: float = DEFAULT_OVERLAP

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST_SIZE:
            raise ValueError(f"size must be a number of pixels, 1 to {LARGEST_SIZE}, got {self.size}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be at least 0 and below 1, a share of the crop, got {self.overlap}")

    def __call__(self, images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Log-probabilities (N, C, H, W) of normalized images (N, 3, H, W); of a single crop, the network's logits."""
        height, width = images.shape[-2:]
        crops = [(top, left) for top in self.starts(height) for left in self.starts(width)]
        if len(crops) == 1:
            return network(images)
        total: Tensor | None = None
        for top, left in crops:
            here = (..., slice(top, top + self.size), slice(left, left + self.size))
            probs = to_probs(network(images[here]))
            if total is None:
                total = probs.new_zeros((*probs.shape[:2], height, width))
                counts = probs.new_zeros((1, 1, height, width))
            total[here] += probs
            counts[here] += 1
        assert total is not None  # there is a first crop
        return to_logits(total.div_(counts))

    def starts(self, length: int) -> list[int]:
        """Start positions of the crops that cover `length` pixels.

        Example:
            >>> SlidingWindow(40, overlap=0.5).starts(100), SlidingWindow(40).starts(30)
            ([0, 20, 40, 60], [0])
        """
        stride = max(1, int(self.size * (1 - self.overlap) + 1e-9))  # rounded down: at least this overlap
        last = max(0, length - self.size)
        return [*range(0, last, stride), last]
