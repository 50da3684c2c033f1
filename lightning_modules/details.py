"""Parts of pictures, framed and enlarged."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from beyondpixel.lightning_modules.sheets import Picture

ENLARGEMENT = 3
_FRAME = ((0, 0, 0), (255, 255, 255))  # a dark and a light line, so that it shows on any colour


class Window(NamedTuple):
    """A part of a picture: its upper left corner and its size, in pixels."""

    top: int
    left: int
    height: int
    width: int


def busiest_window(marked: NDArray[np.bool_]) -> Window:
    """The window, a third as high and wide as the picture, that holds the most marked pixels; the first of several.

    Args:
        marked: (H, W).

    Example:
        >>> marked = np.zeros((9, 12), dtype=bool)
        >>> marked[7, 10:] = True
        >>> busiest_window(marked)
        Window(top=5, left=8, height=3, width=4)
    """
    height, width = (max(1, length // ENLARGEMENT) for length in marked.shape)
    # sums over all windows from an integral image
    total = np.pad(marked.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    counts = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    top, left = np.unravel_index(counts.argmax(), counts.shape)
    return Window(int(top), int(left), height, width)


def with_details(pictures: Sequence[Picture], windows: Sequence[Window]) -> list[Picture]:
    """Each picture with a frame around its window, followed by the window enlarged three times.

    Example:
        >>> picture = np.full((30, 60, 3), 128, dtype=np.uint8)
        >>> [shown.shape for shown in with_details([picture], [Window(5, 5, 10, 20)])]
        [(30, 60, 3), (30, 60, 3)]
    """
    shown = []
    for picture, window in zip(pictures, windows, strict=True):
        bottom, right = window.top + window.height, window.left + window.width
        detail = picture[window.top : bottom, window.left : right]
        shown += [_framed(picture, window), detail.repeat(ENLARGEMENT, axis=0).repeat(ENLARGEMENT, axis=1)]
    return shown


def _framed(picture: Picture, window: Window) -> Picture:
    framed = picture.copy()
    for inset, color in enumerate(_FRAME):
        top, left = window.top + inset, window.left + inset
        bottom, right = window.top + window.height - 1 - inset, window.left + window.width - 1 - inset
        framed[[top, bottom], left : right + 1] = color
        framed[top : bottom + 1, [left, right]] = color
    return framed
