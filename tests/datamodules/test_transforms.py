"""Augmentation: what it does to pixels and labels, and what it depends on."""

import colorsys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from beyondpixel.datamodules.datasets.base import Sample
from beyondpixel.datamodules.resampling import Resampling
from beyondpixel.datamodules.transforms import RandomScaleCrop, TrainingTransform, largest_class_share, resize

FILL = (10, 20, 30)


def ramp(height: int, width: int) -> Sample:
    """Red is the row, green the column, and the mask is a coarse function of both."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.full_like(rows, 77)], axis=-1).astype(np.uint8)
    return Sample(image, (rows // 16 * 4 + columns // 16).astype(np.uint8) % 20, "ramp")


def training(
    crop: tuple[int, int],
    scales: tuple[float, float],
    step: float | None = None,
    *,
    flip: bool = False,
    share: float | None = None,
    photometric: bool = False,
    resampling: Resampling = "bicubic_antialias",
) -> TrainingTransform:
    scale_crop = RandomScaleCrop(crop, scales, step, resampling, share)
    return TrainingTransform(scale_crop, flip=flip, fill=FILL, photometric=photometric)


def test_same_seed_same_pixels_whatever_came_before() -> None:
    sample = ramp(100, 120)
    first = training((64, 64), (0.5, 2.0), flip=True)
    expected = first(sample, 7)
    for seed in range(5):
        first(sample, seed)
    for transform in (first, training((64, 64), (0.5, 2.0), flip=True)):
        again = transform(sample, 7)
        np.testing.assert_array_equal(again.image, expected.image)
        np.testing.assert_array_equal(again.mask, expected.mask)
    assert not np.array_equal(first(sample, 8).image, expected.image)


def test_crop_without_rescaling_is_an_exact_window() -> None:
    sample = ramp(100, 120)
    corners = set()
    for seed in range(200):
        out = training((60, 70), (1.0, 1.0))(sample, seed)
        top, left = (int(value) for value in out.image[0, 0, :2])
        np.testing.assert_array_equal(out.image, sample.image[top : top + 60, left : left + 70])
        np.testing.assert_array_equal(out.mask, sample.mask[top : top + 60, left : left + 70])
        corners.add((top, left))
    tops, lefts = zip(*corners, strict=True)
    # every place can be drawn, both ends included
    assert (min(tops), max(tops)) == (0, 40)
    assert (min(lefts), max(lefts)) == (0, 50)


def test_padding_is_mean_and_void_at_the_right_and_bottom() -> None:
    sample = ramp(40, 30)
    out = training((50, 64), (1.0, 1.0))(sample, 0)
    np.testing.assert_array_equal(out.image[:40, :30], sample.image)
    np.testing.assert_array_equal(out.mask[:40, :30], sample.mask)
    assert (out.image[40:] == FILL).all()
    assert (out.image[:, 30:] == FILL).all()
    assert (out.mask[40:] == 255).all()
    assert (out.mask[:, 30:] == 255).all()


def photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth shapes, hard edges and noise, and values at both ends of the range."""
    small = rng.integers(-60, 316, (height // 8, width // 8, 3)).clip(0, 255).astype(np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    image[height // 3 : height // 2] = small[0, 0]
    return (image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("scale", [0.5, 0.75, 0.83, 0.99, 1.01, 1.25, 1.5, 1.75, 2.0])
@pytest.mark.parametrize("size", [(120, 160), (101, 151)])
def test_a_crop_is_part_of_the_whole_image_rescaled_by_pillow(scale: float, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    image, labels = photo(rng, *size), rng.integers(0, 5, size, dtype=np.uint8)
    crop, scaled = 49, (round(size[1] * scale), round(size[0] * scale))
    transform = training((crop, crop), (scale, scale))
    whole = np.asarray(Image.fromarray(image).resize(scaled, Image.Resampling.BICUBIC), dtype=int)
    nearest = np.asarray(Image.fromarray(labels).resize(scaled, Image.Resampling.NEAREST))
    for seed in range(3):
        out = transform(Sample(image, labels, ""), seed)
        windows = np.lib.stride_tricks.sliding_window_view(nearest, (crop, crop))
        # random labels occur in this order at one place only
        ((top, left),) = np.argwhere((windows == out.mask).all((-1, -2)))
        difference = whole[top : top + crop, left : left + crop] - out.image.astype(int)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("resampling", ["bicubic_antialias", "linear", "area_cubic"])
@pytest.mark.parametrize("scales", [(0.3, 0.9), (0.97, 1.03), (1.2, 3.0)])
def test_image_and_mask_stay_together(scales: tuple[float, float], resampling: Resampling) -> None:
    """Both hold the number of the row, and then of the column: in the image it is interpolated, in the mask rounded."""
    transform = training((64, 64), scales, flip=True, resampling=resampling)
    for numbers in np.mgrid[:90, :120].astype(np.uint8):
        sample = Sample(np.stack([2 * numbers] * 3, axis=-1), numbers, "")
        for seed in range(60):
            out = transform(sample, seed)
            # the cubic filters overshoot at the image's edges
            inner = (out.mask > 6) & (out.mask < numbers.max() - 6)
            assert np.abs(out.image[..., 0][inner] / 2 - out.mask[inner]).max(initial=0) <= 0.5


@pytest.mark.parametrize("size", [(45, 60), (60, 81), (180, 240), (131, 77), (90, 120)])
def test_resizing_is_pillows(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    image, labels = photo(rng, 90, 120), rng.integers(0, 9, (90, 120), dtype=np.uint8)
    out = resize(Sample(image, labels, ""), size, "bicubic_antialias")
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC), dtype=int)
    assert np.abs(out.image - expected).max() <= 1
    nearest = Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(out.mask, np.asarray(nearest))


def test_real_photographs_are_resampled_as_by_pillow(shared: Path) -> None:
    differences = np.zeros(256, dtype=int)
    for file in sorted((shared / "data" / "VOC2012" / "JPEGImages").glob("*.jpg"))[:6]:
        image = np.asarray(Image.open(file))
        for scale in (0.5, 0.75, 1.25, 1.75):
            size = round(image.shape[0] * scale), round(image.shape[1] * scale)
            out = resize(Sample(image, None, ""), size, "bicubic_antialias").image
            expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
            differences += np.bincount(np.abs(out.astype(int) - expected).ravel(), minlength=256)
    # the weights have 16 bits, not Pillow's 22
    assert differences[3:].sum() == 0
    assert differences[2] < 1e-5 * differences.sum()
    assert differences[1] < 0.01 * differences.sum()


def test_linear_and_area_are_opencvs() -> None:
    image = photo(np.random.default_rng(5), 90, 120)
    sample = Sample(image, None, "")
    linear = cv2.resize(image, (80, 60), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize(sample, (60, 80), "linear").image, linear)
    for size in ((135, 180), (80, 200)):  # more pixels than before, though fewer rows
        cubic = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)
        np.testing.assert_array_equal(resize(sample, size, "area_cubic").image, cubic)
    # an area average at half size is the mean of 2x2 pixels
    means = image.astype(float).reshape(45, 2, 60, 2, 3).mean((1, 3))
    assert np.abs(resize(sample, (45, 60), "area_cubic").image - means).max() <= 0.51


def test_a_crop_without_labels_shows_no_second_class() -> None:
    assert largest_class_share(np.full((2, 3), 255, dtype=np.uint8)) == 1


def test_crops_that_show_one_class_are_drawn_again() -> None:
    # the right tenth is another class, which few crops reach
    mask = np.zeros((40, 400), dtype=np.uint8)
    mask[:, 360:] = 1
    mask[:20] = 255
    sample = Sample(np.zeros((40, 400, 3), dtype=np.uint8), mask, "")

    def largest(share: float | None) -> np.ndarray:
        outs = [training((40, 40), (1.0, 1.0), share=share)(sample, seed).mask for seed in range(300)]
        counts = [np.bincount(out[out != 255], minlength=2) for out in outs]
        return np.array([count.max() / count.sum() for count in counts])

    # 19 of 361 positions show both classes with a share under 0.75: 16 of 300 crops, and of ten attempts one in 42 %
    assert (largest(None) < 0.75).sum() < 35
    assert 90 < (largest(0.75) < 0.75).sum() < 165


def test_photometric_distortion_of_grays() -> None:
    """Hue and saturation do not change grays, so brightness and contrast can be read off."""
    gray = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    transform = training((16, 16), (1.0, 1.0), photometric=True)
    kinds = {"same": 0, "shifted": 0, "scaled": 0, "both": 0}
    offsets, brightness = [], []  # what is added, and what it was before the contrast multiplied it
    for seed in range(400):
        out = transform(Sample(gray, None, ""), seed).image
        assert (out == out[..., :1]).all()
        table = out[..., 0].ravel().astype(int)
        assert (np.diff(table) >= 0).all()
        inner = np.flatnonzero((table > 0) & (table < 255))
        slope, offset = np.polyfit(inner, table[inner] + 0.5, 1)
        assert 0.49 < slope < 1.51
        assert abs(offset) < 32 * 1.5 + 1
        offsets.append(abs(offset))
        brightness.append(abs(offset) / slope)
        scaled, shifted = abs(slope - 1) > 0.003, abs(offset - 0.5) > 0.8
        kinds["both" if scaled and shifted else "scaled" if scaled else "shifted" if shifted else "same"] += 1
    # a quarter each, 100 expected, standard deviation 9
    assert all(60 < count < 145 for count in kinds.values()), kinds
    # brightness comes first, so that contrast multiplies its offset as well
    assert max(offsets) > 34
    assert 31 < max(brightness) < 33


def test_photometric_distortion_of_colors_leaves_mask_and_padding_alone() -> None:
    color = (150, 100, 75)
    sample = Sample(np.full((20, 20, 3), color, dtype=np.uint8), np.full((20, 20), 3, dtype=np.uint8), "")
    transform = training((30, 20), (1.0, 1.0), photometric=True)
    hues, saturations = [], []
    expected_hue, expected_saturation, _ = colorsys.rgb_to_hsv(*(value / 255 for value in color))
    for seed in range(300):
        out = transform(sample, seed)
        assert (out.mask[:20] == 3).all()
        assert (out.image[20:] == FILL).all()
        assert len(np.unique(out.image[:20].reshape(-1, 3), axis=0)) == 1
        hue, saturation, _ = colorsys.rgb_to_hsv(*(out.image[0, 0] / 255).tolist())
        hues.append((hue - expected_hue + 0.5) % 1 - 0.5)
        saturations.append(saturation / expected_saturation)
    # up to 18 of 180 steps of hue, either way, for half of the images
    assert 0.08 < np.max(hues) < 0.115
    assert -0.115 < np.min(hues) < -0.08
    assert 0.4 < np.mean(np.abs(hues) < 0.008) < 0.65
    assert 0.25 < min(saturations) < 0.6
    assert 1.3 < max(saturations) < 2.1


def test_a_single_row_of_pixels_survives_shrinking() -> None:
    out = training((8, 8), (0.3, 0.4))(ramp(1, 30), 0)
    assert (out.mask[0] != 255).any()
    assert (out.mask[1:] == 255).all()


def test_discrete_scales_are_drawn_equally_often() -> None:
    # an image that fits into the crop at every scale, so its rescaled height can be read off the padding
    sample = Sample(np.full((40, 40, 3), 200, dtype=np.uint8), np.zeros((40, 40), dtype=np.uint8), "")
    transform = training((90, 90), (0.5, 2.0), step=0.25)
    heights = [int((transform(sample, seed).mask[:, 0] == 0).sum()) for seed in range(1400)]
    values, counts = np.unique(heights, return_counts=True)
    assert values.tolist() == [20, 30, 40, 50, 60, 70, 80]
    # 200 expected each, standard deviation 13
    assert counts.min() > 140
    assert counts.max() < 260


def test_discrete_scales_stay_within_the_range() -> None:
    sample = Sample(np.full((40, 40, 3), 200, dtype=np.uint8), np.zeros((40, 40), dtype=np.uint8), "")
    transform = training((90, 90), (0.75, 1.25), step=0.3)
    heights = {int((transform(sample, seed).mask[:, 0] == 0).sum()) for seed in range(60)}
    assert heights == {30, 42}
    # 0.6 / 0.2 is a little less than 3 in floating point
    transform = training((90, 90), (0.8, 1.4), step=0.2)
    heights = {int((transform(sample, seed).mask[:, 0] == 0).sum()) for seed in range(60)}
    assert heights == {32, 40, 48, 56}


def test_continuous_scales_fill_the_range() -> None:
    sample = Sample(np.zeros((100, 100, 3), dtype=np.uint8), np.zeros((100, 100), dtype=np.uint8), "")
    transform = training((130, 130), (0.75, 1.25))
    heights = np.array([(transform(sample, seed).mask[:, 0] == 0).sum() for seed in range(600)])
    assert heights.min() in (75, 76)
    assert heights.max() in (124, 125)
    # uniform: mean 100, standard error 0.6
    assert abs(heights.mean() - 100) < 3


def test_flip_mirrors_image_and_mask_together_independently_of_the_scale() -> None:
    sample = ramp(100, 100)
    transform = training((130, 130), (0.75, 1.25), flip=True)
    heights, flips = [], []
    for seed in range(600):
        out = transform(sample, seed)
        void_left = bool((out.mask[:, 0] == 255).all())
        columns = out.image[0, :, 1].astype(int)[out.mask[0] != 255]
        assert (np.diff(columns) <= 0).all() == void_left
        flips.append(void_left)
        heights.append((out.mask != 255).any(1).sum())
    # half of 600, standard deviation 12
    assert abs(sum(flips) - 300) < 50
    assert abs(np.corrcoef(heights, flips)[0, 1]) < 0.15


def test_a_mask_never_holds_a_new_label() -> None:
    # neighbors 0 and 19: interpolation would put something in between
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[::3] = 19
    sample = Sample(np.zeros((64, 64, 3), dtype=np.uint8), mask, "")
    seen = set()
    for seed in range(50):
        seen |= set(np.unique(training((48, 80), (0.4, 2.5), flip=True)(sample, seed).mask).tolist())
    seen |= set(np.unique(resize(sample, (23, 41), "linear").mask).tolist())
    assert seen == {0, 19, 255}


def test_the_sample_itself_is_left_alone() -> None:
    sample = ramp(64, 64)
    image, mask = sample.image.copy(), sample.mask.copy()
    for seed in range(10):
        training((64, 64), (0.5, 1.5), flip=True)(sample, seed)
    np.testing.assert_array_equal(sample.image, image)
    np.testing.assert_array_equal(sample.mask, mask)
