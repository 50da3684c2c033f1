"""Strict mapping of the values or colors in a mask file to class indices."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from beyondpixel.datamodules.datasets.base import Pixels

Color = tuple[int, int, int]

IGNORE_INDEX = 255
# an index that no class may have, so that one table look-up both maps values and finds unknown ones
_UNKNOWN = 254
_LISTED = 5


class LabelTable:
    """Mapping of the values or RGB colors in a data set's mask files to class indices and 255.

    Args:
        mapping: From a value, or a color, in the file to a class index, or to 255 for "no label".

    Example:
        >>> table = LabelTable({0: 0, 1: 1, 11: 255})
        >>> table.apply(np.array([[0, 1, 11]], dtype=np.uint8)).tolist(), table.allowed
        ([[0, 1, 255]], 'labels 0-1, 11')
        >>> table = LabelTable({(0, 0, 0): 255, (200, 0, 0): 3})
        >>> table.apply(np.array([[[200, 0, 0], [0, 0, 0]]], dtype=np.uint8)).tolist(), table.allowed
        ([[3, 255]], 'colors (0, 0, 0), (200, 0, 0)')
    """

    def __init__(self, mapping: Mapping[int, int] | Mapping[Color, int]) -> None:
        highest = max((index for index in mapping.values() if index != IGNORE_INDEX), default=-1)
        if highest >= _UNKNOWN:
            raise ValueError(
                f"mapping reaches class index {highest}, but masks are 8 bit wide and hold at most {_UNKNOWN} classes"
            )
        self.mapping: dict[Any, int] = dict(mapping)
        self.kind = "color" if any(isinstance(value, tuple) for value in mapping) else "index"
        # Pillow modes of such masks
        self.modes = ("L", "P") if self.kind == "index" else ("RGB", "P")
        self._table = np.full(1 << 8 if self.kind == "index" else 1 << 24, _UNKNOWN, dtype=np.uint8)
        for value, index in self.mapping.items():
            self._table[value if isinstance(value, int) else _code(*value)] = index

    def apply(self, mask: Pixels) -> Pixels:
        """Map a mask of uint8 values (H, W) or colors (H, W, 3) to class indices (H, W).

        Raises:
            ValueError: A value is not in the table; the message lists the first such values and the allowed ones.
        """
        codes = mask if self.kind == "index" else _code(*np.moveaxis(mask.astype(np.uint32), -1, 0))
        indices = np.asarray(cv2.LUT(mask, self._table) if self.kind == "index" else self._table[codes], dtype=np.uint8)
        unknown = indices == _UNKNOWN
        if unknown.any():
            values, counts = np.unique(codes[unknown], return_counts=True)
            found = ", ".join(
                f"{self._name(int(value))} ({count} pixel{'s' if count > 1 else ''})"
                for value, count in zip(values[:_LISTED], counts, strict=False)
            )
            more = f" and {len(values) - _LISTED} more" if len(values) > _LISTED else ""
            raise ValueError(f"{found}{more}; allowed are {self.allowed}")
        return indices

    def _name(self, code: int) -> str:
        return f"label {code}" if self.kind == "index" else f"color ({code >> 16}, {code >> 8 & 255}, {code & 255})"

    @property
    def allowed(self) -> str:
        """Text that lists the allowed values, as ranges, or colors."""
        if self.kind == "color":
            return "colors " + ", ".join(map(str, self.mapping))
        ranges: list[list[int]] = []
        for value in sorted(self.mapping):
            if ranges and value == ranges[-1][1] + 1:
                ranges[-1][1] = value
            else:
                ranges.append([value, value])
        return "labels " + ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)


def _code(red: Any, green: Any, blue: Any) -> Any:
    return red << 16 | green << 8 | blue
