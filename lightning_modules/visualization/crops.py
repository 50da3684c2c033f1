"""Crops of images that are framed and enlarged."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ENLARGEMENT = 3


class Crop(NamedTuple):
    """A rectangle of an image: its upper left corner and its size, in pixels."""

    top: int
    left: int
    height: int
    width: int


def busiest_crop(marked: NDArray[np.bool_]) -> Crop:
    """Find the crop, a third as high and wide as the image, with the most marked pixels; the first of equal ones.

    Args:
        marked: (H, W).

    Example:
        >>> marked = np.zeros((9, 12), dtype=bool)
        >>> marked[7, 10:] = True
        >>> busiest_crop(marked)
        Crop(top=5, left=8, height=3, width=4)
    """
    height, width = (max(1, length // ENLARGEMENT) for length in marked.shape)
    # sums over all crops from an integral image
    total = np.pad(marked.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    counts = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    top, left = np.unravel_index(counts.argmax(), counts.shape)
    return Crop(int(top), int(left), height, width)
