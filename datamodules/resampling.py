"""Resampling of images and masks: rescale, and keep a crop of the result."""

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from beyondpixel.datamodules.datasets.base import Pixels

Resampling = Literal["area_cubic", "linear", "bicubic_antialias"]
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rescale:
    """Rescale an image to `scaled` (height, width) and keep `rows` and `columns` of the result.

    Example:
        >>> half = Rescale((2, 2), slice(0, 2), slice(0, 1))
        >>> half.mask(np.arange(16, dtype=np.uint8).reshape(4, 4)).tolist()
        [[5], [13]]
    """

    scaled: Size
    rows: slice
    columns: slice

    def image(self, image: Pixels, resampling: Resampling) -> Pixels:
        """Resample an image, uint8 (H, W, 3).

        Args:
            image: The image.
            resampling: "bicubic_antialias" is Pillow's BICUBIC (a = -0.5, as wide as needed when it shrinks) with
                16-bit weights: values differ from Pillow's by at most 1/255, two in a million by 2/255. "linear" is
                OpenCV's, without antialiasing. "area_cubic" is OpenCV's area average when the image shrinks, otherwise
                OpenCV's cubic (a = -0.75).
        """
        if image.shape[:2] == self.scaled:
            return image[self.rows, self.columns]
        if resampling == "bicubic_antialias":
            return self._antialiased(image)
        shrinks = self.scaled[0] * self.scaled[1] < image.shape[0] * image.shape[1]
        smooth = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        method = cv2.INTER_LINEAR if resampling == "linear" else smooth
        scaled = np.asarray(cv2.resize(image, self.scaled[::-1], interpolation=method), dtype=np.uint8)
        return scaled[self.rows, self.columns]

    def _antialiased(self, image: Pixels) -> Pixels:
        rows, vertical, kept_rows = _source(image.shape[0], self.scaled[0], self.rows)
        columns, horizontal, kept_columns = _source(image.shape[1], self.scaled[1], self.columns)
        source = np.require(image[rows, columns], requirements=("C", "W"))
        # torch's fast path needs channels-last strides, which indexing with None would not give
        pixels = torch.from_numpy(source).unsqueeze(0).permute(0, 3, 1, 2)
        scaled = F.interpolate(
            pixels,
            scale_factor=(vertical, horizontal),
            mode="bicubic",
            antialias=True,
            recompute_scale_factor=False,
        )
        return scaled[0].permute(1, 2, 0).numpy()[kept_rows, kept_columns]

    def mask(self, mask: Pixels) -> Pixels:
        """Resample a mask, uint8 (H, W): the nearest pixel, exactly as Pillow's NEAREST."""
        scaled = cv2.resize(mask, self.scaled[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return np.asarray(scaled[self.rows, self.columns], dtype=np.uint8)


def _source(size: int, scaled: int, kept: slice) -> tuple[slice, float, slice]:
    """Find the smallest part of an axis that gives `kept` exactly as the whole axis would.

    Returns:
        That part, its scale factor, and what to keep of the rescaled part.
    """
    support = 2 * max(1.0, size / scaled)  # source pixels at either side that a bicubic sample reaches
    stop = min(kept.stop, scaled)
    # sample points coincide with whole source pixels after every `period` steps, so the part may begin there
    period = scaled // math.gcd(size, scaled)
    first = max(0, kept.start - math.ceil(support * scaled / size) - 1) // period * period
    needed = slice(first * size // scaled, min(size, math.ceil(stop * size / scaled + support) + 1))
    # slightly above the factor: torch rounds its product with the length down, which may be a whole number
    factor = scaled / size * (1 + 1e-9)
    length = needed.stop - needed.start
    if int(length * factor) == length:
        # torch leaves an axis as it is if its length stays the same, whatever the factor, so the part must be the whole
        needed, first = slice(0, size), 0
    return needed, factor, slice(kept.start - first, stop - first)
