"""Sliding windows: images larger than the training crops, seen in overlapping pieces of the crops' size."""

from __future__ import annotations

from torch import Tensor

from beyondpixel.experiments.inference.tta import Predict


def average_windows(predict: Predict, images: Tensor, *, window: int, overlap: float = 1 / 3) -> Tensor:
    """Probabilities from windows of one size, averaged where they overlap.

    The last window of a row or column is moved back so that it ends at the border. An image that is smaller than the
    window in one direction is seen whole in that direction, without padding.

    Args:
        predict: from (N, 3, h, w) images to (N, C, h, w) probabilities.
        images: (N, 3, H, W), normalised.
        window: height and width of the windows, in pixels.
        overlap: share of a window that the next one covers as well, at least; 0 (none) to below 1.

    Returns:
        (N, C, H, W) probabilities.

    Raises:
        ValueError: if window or overlap is out of range.

    Example:
        >>> import torch
        >>> average_windows(lambda piece: piece[:, :2], torch.ones(1, 3, 50, 70), window=32).unique()
        tensor([1.])
    """
    height, width = images.shape[-2:]
    rows = window_starts(height, window, overlap)
    columns = window_starts(width, window, overlap)
    if len(rows) == len(columns) == 1:
        return predict(images)
    total: Tensor | None = None
    for top in rows:
        for left in columns:
            here = (..., slice(top, top + window), slice(left, left + window))
            probs = predict(images[here])
            if total is None:
                total = probs.new_zeros((*probs.shape[:2], height, width))
                times = probs.new_zeros((1, 1, height, width))
            total[here] += probs
            times[here] += 1
    assert total is not None  # there is a first window
    return total.div_(times)


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin that cover `length` pixels.

    Example:
        >>> window_starts(100, 40, 0.5), window_starts(100, 40, 0.0), window_starts(30, 40, 0.5)
        ([0, 20, 40, 60], [0, 40, 60], [0])
    """
    if window < 1:
        raise ValueError(f"window must be a number of pixels, 1 or more, got {window}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be at least 0 and below 1, a share of the window, got {overlap}")
    stride = max(1, int(window * (1 - overlap) + 1e-9))  # rounded down: at least this overlap
    last = max(0, length - window)
    return [*range(0, last, stride), last]
