"""Augmentation with albumentations; no other file imports it.

Masks are resampled with nearest neighbor, and pixels outside of the image get the void label.
"""

import os
import random
from typing import Any

# albumentations checks a server for its newest version on import unless this is set
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from beyondpixel.datamodules.datasets.base import Pixels, Sample
from beyondpixel.datamodules.datasets.labels import IGNORE_INDEX
from beyondpixel.datamodules.resampling import Resampling, Rescale, Size

CROP_ATTEMPTS = 10


class RandomScaleCrop(A.DualTransform):  # type: ignore[misc]  # albumentations has no types
    """Rescale by a random factor, then crop at random; images smaller than the crop stay whole.

    The arguments are options of `SegmentationDataModule`; factors are `scales[0]`, `scales[0] + scale_step`, ..., or
    uniform in the range.
    """

    def __init__(
        self,
        crop: Size,
        scales: tuple[float, float],
        scale_step: float | None,
        resampling: Resampling,
        max_class_share: float | None,
    ) -> None:
        super().__init__(p=1.0)
        self.crop = crop
        self.scales = scales
        self.scale_step = scale_step
        self.resampling = resampling
        self.max_class_share = max_class_share

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the factor and the position."""
        height, width = params["shape"][:2]
        scale = self._draw_scale()
        scaled = max(1, round(height * scale)), max(1, round(width * scale))
        rescale = self._draw_crop(scaled)
        mask = data.get("mask")
        if self.max_class_share is not None and mask is not None:
            for _ in range(CROP_ATTEMPTS - 1):
                if largest_class_share(rescale.mask(mask)) < self.max_class_share:
                    break
                rescale = self._draw_crop(scaled)
        return {"rescale": rescale}

    def apply(self, img: Pixels, rescale: Rescale, **params: Any) -> Pixels:
        """Rescale and crop the image."""
        return rescale.image(img, self.resampling)

    def apply_to_mask(self, mask: Pixels, rescale: Rescale, **params: Any) -> Pixels:
        """Rescale and crop the mask, which keeps its labels."""
        return rescale.mask(mask)

    def _draw_scale(self) -> float:
        low, high = self.scales
        if self.scale_step is None:
            return float(self.random_generator.uniform(low, high))
        steps = int((high - low) / self.scale_step + 1e-9)
        return low + self.scale_step * int(self.random_generator.integers(steps + 1))

    def _draw_crop(self, scaled: Size) -> Rescale:
        draw = self.random_generator.integers
        top, left = (int(draw(max(0, size - side) + 1)) for size, side in zip(scaled, self.crop, strict=True))
        return Rescale(scaled, slice(top, top + self.crop[0]), slice(left, left + self.crop[1]))


class PhotometricDistortion(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations has no types
    """Distort brightness, contrast, saturation and hue, each with probability 0.5, as SSD and the MCIBI authors do.

    Brightness adds -32 to 32, contrast and saturation multiply by 0.5 to 1.5, hue shifts by up to 18 of OpenCV's 180
    steps. Contrast comes first or last, at random.
    """

    def __init__(self) -> None:
        super().__init__(p=1.0)

    def apply(self, img: Pixels, **params: Any) -> Pixels:
        """Distort an RGB image."""
        values, draw = np.arange(256.0), self.random_generator
        brightness = self._maybe(values + draw.uniform(-32, 32), values)
        contrast = self._maybe(values * draw.uniform(0.5, 1.5), values)
        saturation = self._maybe(values * draw.uniform(0.5, 1.5), values)
        hue = self._maybe((values + draw.integers(-18, 18)) % 180, values)
        contrast_first = draw.random() < 0.5
        out: Any = cv2.LUT(img, _bytes(brightness))
        if contrast_first:
            out = cv2.LUT(out, _bytes(contrast))
        if hue is not values or saturation is not values:
            hsv = cv2.cvtColor(out, cv2.COLOR_RGB2HSV)
            tables = np.stack([_bytes(hue), _bytes(saturation), _bytes(values)], axis=-1)[None]
            out = cv2.cvtColor(cv2.LUT(hsv, tables), cv2.COLOR_HSV2RGB)
        return np.asarray(out if contrast_first else cv2.LUT(out, _bytes(contrast)), dtype=np.uint8)

    def _maybe(self, changed: NDArray[np.float64], unchanged: NDArray[np.float64]) -> NDArray[np.float64]:
        return changed if self.random_generator.random() < 0.5 else unchanged


class TrainingTransform:
    """Random scale, crop, color and horizontal flip; small images are padded to the crop with `fill` and void."""

    def __init__(
        self, scale_crop: RandomScaleCrop, *, flip: bool, fill: tuple[int, ...], photometric: bool = False
    ) -> None:
        steps: list[Any] = [scale_crop]
        if photometric:
            steps.append(PhotometricDistortion())
        border = {"position": "top_left", "border_mode": cv2.BORDER_CONSTANT, "fill": fill, "fill_mask": IGNORE_INDEX}
        steps.append(A.PadIfNeeded(*scale_crop.crop, **border))
        if flip:
            steps.append(A.HorizontalFlip(p=0.5))
        self._compose = A.Compose(steps)

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Augment a sample, without modifying `sample`; the same seed gives the same pixels."""
        # set_random_seed would give every transform its own generator with the same seed, and so the same draws
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311
        masks = {} if sample.mask is None else {"mask": sample.mask}
        arrays = self._compose(image=sample.image, **masks)
        return Sample(arrays["image"], arrays.get("mask"), sample.id)


def resize(sample: Sample, size: Size, resampling: Resampling) -> Sample:
    """Resize a sample to (height, width), without modifying `sample`; for `resampling` see `Rescale.image`."""
    rescale = Rescale(size, slice(0, size[0]), slice(0, size[1]))
    mask = None if sample.mask is None else rescale.mask(sample.mask)
    return Sample(rescale.image(sample.image, resampling), mask, sample.id)


def largest_class_share(mask: Pixels) -> float:
    """Return the most frequent class's share of the labeled pixels of a mask; 1 if nothing is labeled.

    >>> largest_class_share(np.array([[0, 0, 0, 1, 255, 255]], dtype=np.uint8))
    0.75
    """
    counts = np.bincount(mask.ravel(), minlength=256)[:IGNORE_INDEX]
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


def pad(array: Pixels, size: Size, fill: tuple[int, ...]) -> Pixels:
    """Pad an image or mask at the bottom and right to `size` (height, width)."""
    bottom, right = size[0] - array.shape[0], size[1] - array.shape[1]
    if not bottom and not right:
        return array
    return np.asarray(cv2.copyMakeBorder(array, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=fill))


def _bytes(values: NDArray[np.float64]) -> Pixels:
    return values.clip(0, 255).astype(np.uint8)
