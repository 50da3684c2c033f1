"""Colors of label maps against a loop over pixels or classes."""

import numpy as np
import pytest

from beyondpixel.lightning_modules.visualization import (
    class_colors,
    colorize,
    default_palette,
    denormalize,
    difference_map,
    error_map,
    overlay,
)
from beyondpixel.lightning_modules.visualization.colors import BOTH_RIGHT, BOTH_WRONG, FIRST_RIGHT, SECOND_RIGHT

PALETTE = [(10, 20, 30), (200, 0, 0), (0, 0, 200)]
NAMES = ["sky", "road", "car"]


@pytest.fixture
def masks() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, size=(24, 32))
    target[:6, :10] = 255
    return {
        "target": target,
        "first": rng.integers(0, 3, size=target.shape),
        "second": rng.integers(0, 3, size=target.shape),
    }


def test_colorize_paints_classes_and_hatches_void(masks: dict[str, np.ndarray]) -> None:
    target = masks["target"]
    image = colorize(target, PALETTE)
    for index, color in enumerate(PALETTE):
        assert (image[target == index] == color).all()
    void = {tuple(color) for color in image[target == 255].tolist()}
    assert len(void) == 2  # stripes
    assert not void & set(PALETTE)


def test_colorize_with_void_inside_the_range() -> None:
    image = colorize(np.array([[0, 2]]), PALETTE, ignore_index=2)
    assert tuple(image[0, 0]) == PALETTE[0]
    assert tuple(image[0, 1]) != PALETTE[2]


@pytest.mark.parametrize("label", [3, -1])
def test_colorize_refuses_unknown_labels(label: int) -> None:
    with pytest.raises(ValueError, match=r"mask holds labels from .* but palette has 3 colors and ignore_index is 255"):
        colorize(np.array([[0, label]]), PALETTE)


def test_denormalize_undoes_normalization() -> None:
    image = np.random.default_rng(0).integers(0, 256, size=(5, 7, 3)).astype(np.uint8)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
    normalized = np.moveaxis((image / 255 - mean) / std, -1, 0).astype(np.float32)
    np.testing.assert_array_equal(denormalize(normalized, mean, std), image)


def test_denormalize_clips() -> None:
    assert denormalize(np.full((3, 1, 1), 99.0), (0, 0, 0), (1, 1, 1)).max() == 255
    assert denormalize(np.full((3, 1, 1), -99.0), (0, 0, 0), (1, 1, 1)).min() == 0


def test_overlay_leaves_void_as_it_is(masks: dict[str, np.ndarray]) -> None:
    image = np.full((24, 32, 3), 100, dtype=np.uint8)
    mixed = overlay(image, masks["target"], PALETTE, alpha=0.5)
    assert (mixed[masks["target"] == 255] == 100).all()
    assert (mixed[masks["target"] == 1] == (150, 50, 50)).all()


def test_error_map_counts_errors(masks: dict[str, np.ndarray]) -> None:
    image = error_map(masks["first"], masks["target"])
    counted = masks["target"] != 255
    right = (image == BOTH_RIGHT).all(-1)
    np.testing.assert_array_equal(right[counted], (masks["first"] == masks["target"])[counted])
    assert not right[~counted].any()


def test_difference_map_tells_who_is_right(masks: dict[str, np.ndarray]) -> None:
    first, second, target = masks["first"], masks["second"], masks["target"]
    image = difference_map(first, second, target)
    for row, column in np.ndindex(target.shape):
        color = tuple(image[row, column].tolist())
        if target[row, column] == 255:
            assert color not in (BOTH_RIGHT, FIRST_RIGHT, SECOND_RIGHT, BOTH_WRONG)
            continue
        key = (first[row, column] == target[row, column], second[row, column] == target[row, column])
        expected = {(1, 1): BOTH_RIGHT, (1, 0): FIRST_RIGHT, (0, 1): SECOND_RIGHT, (0, 0): BOTH_WRONG}
        assert color == expected[key]


def test_legend_holds_what_is_there(masks: dict[str, np.ndarray]) -> None:
    colors = class_colors([masks["target"]], PALETTE, NAMES)
    assert list(colors) == ["sky", "road", "car", "not labeled"]
    assert (colors["car"], colors["not labeled"]) == (PALETTE[2], None)
    assert list(class_colors([np.array([[1]])], PALETTE, NAMES)) == ["road"]


def test_default_palette_has_distinct_colors() -> None:
    palette = np.array(default_palette(60), dtype=int)
    distance = np.abs(palette[:, None] - palette[None]).sum(-1) + 999 * np.eye(60, dtype=int)
    assert distance.min() > 8
