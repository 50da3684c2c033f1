"""Everything that albumentations does here, and the only file that touches it.

A mask is only ever moved pixel by pixel (nearest neighbour), and whatever is not image gets the void label.
"""

import os
from collections.abc import Mapping
from typing import Any, Protocol

# albumentations asks a server for its newest version when it is imported, unless told not to
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np

from beyondpixel.datamodules.datasets.labels import IGNORE_INDEX
from beyondpixel.datamodules.datasets.samples import Pixels, Sample

Size = tuple[int, int]


class Augmentation(Protocol):
    """From a sample and a seed to an augmented sample; the same seed gives the same pixels."""

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Augment."""


class RandomScaleCrop(A.DualTransform):  # type: ignore[misc]  # albumentations has no types
    """Rescale by a random factor, pad at the right and bottom, crop at random.

    This is the augmentation of the RMI and DeepLab recipes, done in the other order: the window of the image that will
    fill the crop is cut out first, and only this window is rescaled. The window has whole pixels, so the factor is
    rounded by less than half a pixel per window side, and resampling does not look beyond the window's edge.

    Args:
        crop: Height and width that come out.
        scales: Lowest and highest factor.
        scale_step: Factors are `scales[0]`, `scales[0] + scale_step`, ...; None draws them uniformly from the range.
        fill: Colour of the padding, RGB 0-255.
    """

    def __init__(
        self, crop: Size, scales: tuple[float, float], scale_step: float | None, fill: tuple[int, ...]
    ) -> None:
        super().__init__(p=1.0)
        self.crop = crop
        self.scales = scales
        self.scale_step = scale_step
        self.fill = fill

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the factor and the window."""
        height, width = params["shape"][:2]
        scale = self._draw_scale()
        top, window_height, out_height = self._draw_span(height, self.crop[0], scale)
        left, window_width, out_width = self._draw_span(width, self.crop[1], scale)
        return {
            "window": (slice(top, top + window_height), slice(left, left + window_width)),
            "out": (out_height, out_width),
            # cubic overshoots and folds high frequencies down when it shrinks; area averages
            "interpolation": cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC,
        }

    def apply(self, img: Pixels, window: Any, out: Size, interpolation: int, **params: Any) -> Pixels:
        """Cut, rescale and pad the image."""
        resized = _resize(img[window], out, interpolation)
        return pad(resized, self.crop, self.fill)

    def apply_to_mask(self, mask: Pixels, window: Any, out: Size, **params: Any) -> Pixels:
        """Cut, rescale and pad the mask, which keeps its labels."""
        return pad(_resize(mask[window], out, cv2.INTER_NEAREST_EXACT), self.crop, (IGNORE_INDEX,))

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        """The arguments that albumentations prints."""
        return ("crop", "scales", "scale_step", "fill")

    def _draw_scale(self) -> float:
        low, high = self.scales
        if self.scale_step is None:
            return float(self.random_generator.uniform(low, high))
        steps = round((high - low) / self.scale_step)
        return low + self.scale_step * int(self.random_generator.integers(steps + 1))

    def _draw_span(self, size: int, crop: int, scale: float) -> tuple[int, int, int]:
        """One axis: start and length of the window in the image, and its length in the crop."""
        scaled = max(1, round(size * scale))
        if scaled <= crop:
            return 0, size, scaled
        window = min(size, max(1, round(crop / scale)))
        return int(self.random_generator.integers(size - window + 1)), window, crop


class TrainingTransform:
    """Random scale, crop and horizontal flip.

    Args:
        crop: Height and width that come out.
        scales: Lowest and highest factor.
        scale_step: Distance of the factors; None for any factor in the range.
        flip: Mirror every other sample, on average.
        fill: Colour of the padding, RGB 0-255.
    """

    def __init__(
        self, *, crop: Size, scales: tuple[float, float], scale_step: float | None, flip: bool, fill: tuple[int, ...]
    ) -> None:
        steps: list[Any] = [RandomScaleCrop(crop, scales, scale_step, fill)]
        if flip:
            steps.append(A.HorizontalFlip(p=0.5))
        self._compose = A.Compose(steps)

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Augment `sample`, which stays as it is."""
        # albumentations gives all its transforms generators of this one seed. They stay independent because the scale
        # and the window are drawn from NumPy's generator, and the flip from Python's.
        self._compose.set_random_seed(seed)
        return _apply(self._compose, sample)


class Resize:
    """Resize to a fixed size: area-averaged or cubic image, nearest-neighbour mask.

    Args:
        size: Height and width.
    """

    def __init__(self, size: Size) -> None:
        self.size = size
        self._shrink = self._resize_with(cv2.INTER_AREA)
        self._enlarge = self._resize_with(cv2.INTER_CUBIC)

    def __call__(self, sample: Sample) -> Sample:
        """Resize `sample`, which stays as it is."""
        height, width = sample.image.shape[:2]
        if (height, width) == self.size:
            return sample
        shrinks = self.size[0] * self.size[1] < height * width
        return _apply(self._shrink if shrinks else self._enlarge, sample)

    def _resize_with(self, interpolation: int) -> A.Compose:
        # INTER_NEAREST alone takes the upper left pixel of a cell, which would shift the mask against the image
        nearest = cv2.INTER_NEAREST_EXACT
        return A.Compose([A.Resize(*self.size, interpolation=interpolation, mask_interpolation=nearest)])


def pad(array: Pixels, size: Size, fill: tuple[int, ...]) -> Pixels:
    """Pad an image or mask at the bottom and right to `size` (height, width)."""
    bottom, right = size[0] - array.shape[0], size[1] - array.shape[1]
    if not bottom and not right:
        return array
    return np.asarray(cv2.copyMakeBorder(array, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=fill))


def _apply(compose: A.Compose, sample: Sample) -> Sample:
    arrays: Mapping[str, Pixels]
    if sample.mask is None:
        arrays = compose(image=sample.image)
        return Sample(arrays["image"], None, sample.id)
    arrays = compose(image=sample.image, mask=sample.mask)
    return Sample(arrays["image"], arrays["mask"], sample.id)


def _resize(array: Pixels, size: Size, interpolation: int) -> Pixels:
    if array.shape[:2] == size:
        return array
    return np.asarray(cv2.resize(np.ascontiguousarray(array), (size[1], size[0]), interpolation=interpolation))
