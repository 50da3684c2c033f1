"""Test-time augmentation: probabilities averaged over rescaled and mirrored passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from beyondpixel.experiments.inference.probabilities import to_logits, to_probs

SCALE_RANGE = (0.1, 4.0)


@dataclass(frozen=True)
class TestTimeAugmentation:
    """Mean probability over all scales, each unflipped and (with `flip`) mirrored left to right.

    Images and probabilities are resized bilinearly (align_corners=False), images with antialiasing where they shrink.

    Args:
        scales: distinct factors of height and width, in 0.1..4: the memory of a pass grows with a scale's square.
        flip: whether to predict each scale mirrored, too.

    Raises:
        ValueError: if scales are missing, repeated or out of range.

    Example:
        >>> import torch
        >>> brightness = lambda images: torch.cat([images[:, :1], 1 - images[:, :1]], dim=1)
        >>> tta = TestTimeAugmentation(scales=(0.5, 1), flip=True)
        >>> tta(torch.rand(1, 3, 8, 12), brightness).shape
        torch.Size([1, 2, 8, 12])
    """

    __test__ = False  # pytest would collect a class of this name

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        low, high = SCALE_RANGE
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales must be one or more distinct factors, got {_listed(self.scales)}")
        if not all(low <= scale <= high for scale in self.scales):
            raise ValueError(
                f"scales must be in {low:g}..{high:g}, because the memory of a pass grows with a scale's square "
                f"({high:g} takes {high**2:g} times that of the image), got {_listed(self.scales)}"
            )

    def __call__(self, images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Log-probabilities (N, C, H, W) of normalized images (N, 3, H, W)."""
        height, width = images.shape[-2:]
        total: Tensor | None = None
        for scale in self.scales:
            size = max(1, round(height * scale)), max(1, round(width * scale))
            scaled = images if size == (height, width) else _resize(images, size, antialias=scale < 1)
            for mirrored in (False, True) if self.flip else (False,):
                probs = to_probs(network(scaled.flip(-1)).flip(-1) if mirrored else network(scaled))
                if size != (height, width):
                    probs = _resize(probs, (height, width), antialias=False)
                total = probs if total is None else total + probs
        assert total is not None  # there is a first scale
        return to_logits(total / (len(self.scales) * (2 if self.flip else 1)))


def _resize(images: Tensor, size: tuple[int, int], *, antialias: bool) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=antialias)


def _listed(scales: tuple[float, ...]) -> str:
    return ",".join(f"{scale:g}" for scale in scales) or "none"
