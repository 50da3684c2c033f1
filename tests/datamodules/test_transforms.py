"""Augmentation: what it does to pixels and labels, and what it depends on."""

import cv2
import numpy as np
import pytest
from PIL import Image

from beyondpixel.datamodules.datasets.samples import Sample
from beyondpixel.datamodules.transforms import Resize, TrainingTransform

FILL = (10, 20, 30)


def ramp(height: int, width: int) -> Sample:
    """Red is the row, green the column, and the mask is a coarse function of both."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.full_like(rows, 77)], axis=-1).astype(np.uint8)
    return Sample(image, (rows // 16 * 4 + columns // 16).astype(np.uint8) % 20, "ramp")


def training(crop: tuple[int, int], scales: tuple[float, float], step: float | None = None, flip: bool = False):
    return TrainingTransform(crop=crop, scales=scales, scale_step=step, flip=flip, fill=FILL)


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


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 1.5, 1.75, 2.0])
def test_close_to_rescaling_the_whole_image_and_cropping_then(scale: float) -> None:
    """Against Pillow: bicubic with antialiasing, looking at the whole image beyond the crop."""
    rng = np.random.default_rng(3)
    smooth = cv2.resize(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
    blobs = cv2.resize(rng.integers(0, 5, (12, 16), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_NEAREST_EXACT)
    crop = 49
    transform = training((crop, crop), (scale, scale))
    out = transform(Sample(smooth, blobs, ""), 11)

    # where the window lies is read off masks that hold their own coordinates, drawn with the same seed
    side = round(crop / scale)
    top, left = (
        int(transform(Sample(smooth, axis.astype(np.uint8), ""), 11).mask[0, 0]) - int(0.5 * side / crop)
        for axis in np.mgrid[:120, :160]
    )
    box = (left, top, left + side, top + side)

    image = Image.fromarray(smooth).resize((crop, crop), Image.Resampling.BICUBIC, box=box)
    labels = Image.fromarray(blobs).resize((crop, crop), Image.Resampling.NEAREST, box=box)
    assert np.abs(np.asarray(image, dtype=float) - out.image)[6:-6, 6:-6].mean() < 4
    # a sample point that lies exactly between two pixels may take either
    points = (np.arange(crop) + 0.5) * side / crop
    clear = ~np.isclose(points, points.round())
    np.testing.assert_array_equal(np.asarray(labels)[clear][:, clear], out.mask[clear][:, clear])


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
    # neighbours 0 and 19: interpolation would put something in between
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[::3] = 19
    sample = Sample(np.zeros((64, 64, 3), dtype=np.uint8), mask, "")
    seen = set()
    for seed in range(50):
        seen |= set(np.unique(training((48, 80), (0.4, 2.5), flip=True)(sample, seed).mask).tolist())
    seen |= set(np.unique(Resize((23, 41))(sample).mask).tolist())
    assert seen == {0, 19, 255}


def test_the_sample_itself_is_left_alone() -> None:
    sample = ramp(64, 64)
    image, mask = sample.image.copy(), sample.mask.copy()
    for seed in range(10):
        training((64, 64), (0.5, 1.5), flip=True)(sample, seed)
    np.testing.assert_array_equal(sample.image, image)
    np.testing.assert_array_equal(sample.mask, mask)
