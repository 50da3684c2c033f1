"""Test-time augmentation: probabilities averaged over rescaled and mirrored views of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

Predict = Callable[[Tensor], Tensor]  # (N, 3, H, W) normalised images to (N, C, H, W) probabilities


def average_views(predict: Predict, images: Tensor, *, scales: Sequence[float] = (1.0,), flip: bool = False) -> Tensor:
    """The mean over all scales, each as it is and (with `flip`) mirrored, of the probabilities at the images' size.

    Images and probabilities are resized bilinearly (align_corners=False), images with antialiasing where they shrink.

    Args:
        predict: from (N, 3, h, w) images of any size to (N, C, h, w) probabilities.
        images: (N, 3, H, W), normalised.
        scales: factors of height and width.
        flip: whether each view is seen mirrored left to right, too.

    Returns:
        (N, C, H, W) probabilities.

    Example:
        >>> import torch
        >>> brightness = lambda images: torch.cat([images[:, :1], 1 - images[:, :1]], dim=1)
        >>> average_views(brightness, torch.rand(1, 3, 8, 12), scales=(0.5, 1), flip=True).shape
        torch.Size([1, 2, 8, 12])
    """
    height, width = images.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        view = images if size == (height, width) else _resize(images, size, antialias=scale < 1)
        for mirrored in (False, True) if flip else (False,):
            probs = predict(view.flip(-1)).flip(-1) if mirrored else predict(view)
            if size != (height, width):
                probs = _resize(probs, (height, width), antialias=False)
            total = probs if total is None else total + probs
    if total is None:
        raise ValueError("scales must hold one factor or more, got none")
    return total / (len(scales) * (2 if flip else 1))


def _resize(images: Tensor, size: tuple[int, int], *, antialias: bool) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=antialias)
