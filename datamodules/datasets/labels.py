"""From the values or colors in a mask file to class indices, strictly."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

import cv2
import numpy as np

from beyondpixel.datamodules.datasets.base import Pixels

IGNORE_INDEX = 255
# an index that no class may have, so that one table look-up both maps and finds unknown values
_UNKNOWN = 254


class UnknownLabelsError(ValueError):
    """A mask holds values that its data set does not define."""


class MaskValues(Protocol):
    """What the pixels of a data set's mask files mean."""

    kind: ClassVar[Literal["index", "color"]]
    modes: ClassVar[tuple[str, ...]]

    def apply(self, mask: Pixels) -> Pixels:
        """Class indices (H, W) of the pixels of a file."""

    @property
    def allowed(self) -> str:
        """What may occur, in words."""


class LabelTable:
    """Maps the values that a data set's mask files may hold to class indices and 255.

    Args:
        mapping: From value in the file to class index, or to 255 for "no label".

    >>> table = LabelTable({0: 0, 1: 1, 11: 255})
    >>> table.apply(np.array([[0, 1, 11]], dtype=np.uint8)).tolist()
    [[0, 1, 255]]
    >>> table.allowed
    'labels 0-1, 11'
    """

    kind: ClassVar[Literal["index", "color"]] = "index"
    modes: ClassVar[tuple[str, ...]] = ("L", "P")

    def __init__(self, mapping: Mapping[int, int]) -> None:
        highest = max((index for index in mapping.values() if index != IGNORE_INDEX), default=-1)
        if highest >= _UNKNOWN:
            raise ValueError(
                f"mapping reaches class index {highest}, but masks are 8 bit wide and hold at most {_UNKNOWN} classes"
            )
        self.mapping = dict(mapping)
        self._table = np.full(256, _UNKNOWN, dtype=np.uint8)
        for value, index in mapping.items():
            self._table[value] = index

    @classmethod
    def identity(cls, num_classes: int) -> "LabelTable":
        """Values are class indices already, and 255 means no label."""
        return cls({**{index: index for index in range(num_classes)}, IGNORE_INDEX: IGNORE_INDEX})

    def apply(self, mask: Pixels) -> Pixels:
        """Class indices of a mask (H, W) of uint8 file values.

        Raises:
            UnknownLabelsError: A value is not in the table; all such values are named, with the allowed ones.
        """
        indices = np.asarray(cv2.LUT(mask, self._table), dtype=np.uint8)
        if (indices == _UNKNOWN).any():
            values, counts = np.unique(mask[indices == _UNKNOWN], return_counts=True)
            found = ", ".join(
                f"label {value} ({count} pixel{'s' if count > 1 else ''})"
                for value, count in zip(values, counts, strict=True)
            )
            raise UnknownLabelsError(f"{found}; allowed are {self.allowed}")
        return indices

    @property
    def allowed(self) -> str:
        """The values that may occur, as ranges."""
        ranges: list[list[int]] = []
        for value in sorted(self.mapping):
            if ranges and value == ranges[-1][1] + 1:
                ranges[-1][1] = value
            else:
                ranges.append([value, value])
        return "labels " + ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)


class ColorTable:
    """Maps the colors that a data set's mask files may hold to class indices and 255.

    Args:
        mapping: From color (RGB) to class index, or to 255 for "no label".

    >>> table = ColorTable({(0, 0, 0): 255, (200, 0, 0): 3})
    >>> table.apply(np.array([[[200, 0, 0], [0, 0, 0]]], dtype=np.uint8)).tolist()
    [[3, 255]]
    """

    kind: ClassVar[Literal["index", "color"]] = "color"
    modes: ClassVar[tuple[str, ...]] = ("RGB", "P")

    def __init__(self, mapping: Mapping[tuple[int, int, int], int]) -> None:
        self.mapping = dict(mapping)
        codes = np.array([_code(*color) for color in mapping], dtype=np.uint32)
        order = np.argsort(codes)
        self._codes = codes[order]
        self._indices = np.array(list(mapping.values()), dtype=np.uint8)[order]

    def apply(self, mask: Pixels) -> Pixels:
        """Class indices (H, W) of a mask (H, W, 3) of uint8 colors.

        Raises:
            UnknownLabelsError: A color is not in the table.
        """
        wide = mask.astype(np.uint32)
        codes = _code(wide[..., 0], wide[..., 1], wide[..., 2])
        places = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        unknown = self._codes[places] != codes
        if unknown.any():
            values, counts = np.unique(codes[unknown], return_counts=True)
            named = [f"({code >> 16}, {code >> 8 & 255}, {code & 255})" for code in values[:5]]
            more = f" and {len(values) - 5} more" if len(values) > 5 else ""
            raise UnknownLabelsError(
                f"colors {', '.join(named)}{more} ({counts.sum()} pixels); allowed are {self.allowed}"
            )
        return np.asarray(self._indices[places], dtype=np.uint8)

    @property
    def allowed(self) -> str:
        """The colors that may occur."""
        return "colors " + ", ".join(map(str, self.mapping))


def _code(red: Any, green: Any, blue: Any) -> Any:
    return red << 16 | green << 8 | blue
