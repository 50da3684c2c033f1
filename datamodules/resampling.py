"""Resampling of images and masks: rescale, and keep a crop of the result."""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from beyondpixel.datamodules.datasets.base import Pixels

Resampling = Literal["area_cubic", "linear", "bicubic_antialias"]
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rescale:
    """Rescale an image to `scaled` (height, width) and keep what lies at `rows` and `columns` of the result.

    Example:
        >>> half = Rescale((2, 2), slice(0, 2), slice(0, 1))
        >>> half.mask(np.arange(16, dtype=np.uint8).reshape(4, 4)).tolist()
        [[5], [13]]
    """

    scaled: Size
    rows: slice
    columns: slice

    @classmethod
    def whole(cls, size: Size) -> "Rescale":
        """Rescale to `size` and keep everything."""
        return cls(size, slice(0, size[0]), slice(0, size[1]))

    def image(self, image: Pixels, resampling: Resampling) -> Pixels:
        """Resample an image, uint8 (H, W, 3).

        Args:
            image: The image.
            resampling: "bicubic_antialias" is Pillow's BICUBIC (a = -0.5, as wide as needed when it shrinks) with
                weights of 16 bits: values differ from Pillow's by at most 1/255, two in a million by 2/255. "linear" is
                OpenCV's, without antialiasing. "area_cubic" is OpenCV's area average when the image shrinks, otherwise
                OpenCV's cubic (a = -0.75).
        """
        if image.shape[:2] == self.scaled:
            scaled = image
        elif resampling == "bicubic_antialias":
            pixels = torch.from_numpy(np.require(image, requirements=("C", "W"))).permute(2, 0, 1)[None]
            scaled = F.interpolate(pixels, size=self.scaled, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
        else:
            shrinks = self.scaled[0] * self.scaled[1] < image.shape[0] * image.shape[1]
            smooth = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
            method = cv2.INTER_LINEAR if resampling == "linear" else smooth
            scaled = np.asarray(cv2.resize(image, self.scaled[::-1], interpolation=method), dtype=np.uint8)
        return scaled[self.rows, self.columns]

    def mask(self, mask: Pixels) -> Pixels:
        """Resample a mask, uint8 (H, W): the nearest pixel, exactly as Pillow's NEAREST."""
        if mask.shape == self.scaled:
            return mask[self.rows, self.columns]
        rows, columns = (_nearest(size, scaled) for size, scaled in zip(mask.shape, self.scaled, strict=True))
        return mask.take(rows[self.rows], axis=0).take(columns[self.columns], axis=1)


def _nearest(size: int, scaled: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """The source pixel of each scaled pixel of an axis."""
    steps = np.full(scaled, size / scaled)
    steps[0] /= 2
    # Pillow adds up its sample points as well, so those between two pixels are rounded alike
    return np.add.accumulate(steps).astype(np.intp).clip(max=size - 1)
