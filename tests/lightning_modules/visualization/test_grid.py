"""Image grids as files: each tile's pixels, texts and legends."""

import ast
import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

import beyondpixel.lightning_modules
from beyondpixel.lightning_modules.visualization import (
    Crop,
    colorize,
    comparison_grid,
    difference_map,
    error_map,
    image_grid,
    prediction_grid,
)

Pixels = NDArray[np.uint8]
PALETTE = [(10, 20, 30), (200, 0, 0), (0, 0, 200)]
NAMES = ["sky", "road", "car"]


def _saved(figure: Figure) -> Pixels:
    file = io.BytesIO()
    figure.savefig(file)
    return np.asarray(PIL.Image.open(file).convert("RGB"))


def _gray(height: int = 30, width: int = 40) -> Pixels:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def _tile(figure: Figure, index: int) -> Pixels:
    box = figure.axes[index].get_window_extent()
    pixels = _saved(figure)
    height = len(pixels)
    return pixels[round(height - box.y1) : round(height - box.y0), round(box.x0) : round(box.x1)]


def _extent(pixels: Pixels, color: int = 90) -> tuple[int, int]:
    rows, cols = np.nonzero((pixels == color).all(-1))
    return int(rows.max() - rows.min() + 1), int(cols.max() - cols.min() + 1)


@pytest.fixture
def masks() -> list[Any]:
    rng = np.random.default_rng(0)
    target, first, second = rng.integers(0, 3, size=(3, 24, 32))
    target[:6, :10] = 255
    return [target, first, second]


def test_each_tile_shows_its_image(masks: list[Any]) -> None:
    image = np.full((24, 32, 3), 77, dtype=np.uint8)
    target, first, second = masks
    painted = [colorize(mask, PALETTE) for mask in (target, first, second)]
    style: Any = {"palette": PALETTE, "class_names": NAMES}
    for figure, expected in (
        (
            comparison_grid([image], [target], ("CE", [first]), ("RMI", [second]), **style),
            [*painted, difference_map(first, second, target)],
        ),
        (prediction_grid([image], [target], [second], **style), [painted[0], painted[2], error_map(second, target)]),
    ):
        for index, shown in enumerate([image, *expected]):
            tile = _tile(figure, index)
            assert tile.shape == (240, 320, 3)  # enlarged tenfold; its outermost pixels are the frame's line
            np.testing.assert_array_equal(tile[5::10, 5::10], shown)


def test_crops_are_framed_and_enlarged_below() -> None:
    image = np.random.default_rng(0).integers(1, 250, (30, 45, 3), dtype=np.uint8)
    crop = Crop(10, 15, 10, 15)
    plain, figure = image_grid({"a": [image]}), image_grid({"a": [image]}, crops=[crop])
    whole, framed, enlarged = _tile(plain, 0), _tile(figure, 0), _tile(figure, 1)
    assert whole.shape == framed.shape == enlarged.shape == (240, 360, 3)
    np.testing.assert_array_equal(enlarged[12::24, 12::24], image[10:20, 15:30])
    changed = (framed != whole).any(-1)
    assert changed[78:82, 120:240].any(axis=0).all()  # along the crop's upper edge
    assert not changed[84:156, 124:236].any()  # inside
    assert not changed[:76].any()
    assert not changed[:, 246:].any()


def test_legend_colors_are_drawn_below() -> None:
    plain = _saved(image_grid({"image": [_gray()]}))
    shown = _saved(image_grid({"image": [_gray()]}, legends={"Classes": {"road": (1, 2, 3), "car": (4, 5, 6)}}))
    assert shown.shape[0] > plain.shape[0]
    for color in ((1, 2, 3), (4, 5, 6)):
        assert (shown == color).all(-1).any()
        assert not (plain == color).all(-1).any()


def test_a_long_legend_stays_on_the_page() -> None:
    colors = {f"a rather long name {index}": (index, 200, 3) for index in range(40)}
    shown = _saved(image_grid({"image": [_gray()], "target": [_gray()]}, legends={"Classes": colors}))
    assert all((shown == color).all(-1).any() for color in colors.values())
    assert (shown[:, -8:] == 255).all()
    assert (shown[-8:] == 255).all()


def test_void_has_stripes_in_the_legend() -> None:
    shown = _saved(image_grid({"image": [_gray()]}, legends={"Classes": {"not labeled": None}}))
    blank = _saved(image_grid({"image": [_gray()]}, legends={"Classes": {"not labeled": (250, 250, 250)}}))
    assert (shown != blank).any()


def test_long_headings_and_titles_are_wrapped() -> None:
    words = "several words " * 20
    short = _saved(image_grid({"image": [_gray()], "target": [_gray()]}, heading="short"))
    for figure in (
        image_grid({"image": [_gray()], "target": [_gray()]}, heading=words),
        image_grid({"image": [_gray()], f"RMI\n{words}": [_gray()]}, heading="short"),
    ):
        shown = _saved(figure)
        assert shown.shape[1] == short.shape[1]
        assert shown.shape[0] > short.shape[0]
        assert (shown[:, -10:] == 255).all()


def test_captions_are_in_the_corner_of_their_image() -> None:
    images = {"image": [_gray(), _gray()], "CE": [_gray(), _gray()]}
    plain, shown = _saved(image_grid(images)), _saved(image_grid(images, captions={"CE": ["IoU 31 %", "IoU 37 %"]}))
    assert shown.shape == plain.shape
    rows, cols = np.nonzero((plain != shown).any(-1))
    assert cols.min() > plain.shape[1] // 2
    assert rows.min() < plain.shape[0] // 2 < rows.max()


def test_small_images_are_enlarged_by_whole_factors_and_very_large_ones_reduced() -> None:
    for size, expected in (((30, 100), (120, 400)), ((300, 500), (300, 500)), ((1024, 2048), (400, 800))):
        height, width = _extent(_saved(image_grid({"image": [_gray(*size)]})))
        # without the frame's line around it
        assert expected[0] - 2 <= height <= expected[0]
        assert expected[1] - 2 <= width <= expected[1]


def test_images_of_different_widths_keep_their_shape() -> None:
    wide, narrow = _gray(100, 300), np.full((300, 100, 3), 91, dtype=np.uint8)
    shown = _saved(image_grid({"target": [wide, narrow]}))
    for color, (height, width) in ((90, (200, 600)), (91, (600, 200))):
        found = _extent(shown, color)
        # without the frame's line around it
        assert height - 2 <= found[0] <= height
        assert width - 2 <= found[1] <= width


@pytest.mark.parametrize("columns", [{}, {"image": []}, {"image": [_gray()], "target": []}])
def test_columns_must_match(columns: dict[str, list[Pixels]]) -> None:
    with pytest.raises(ValueError, match="columns must have the same number of images, at least one, got"):
        image_grid(columns)


def test_matplotlib_is_imported_only_when_a_figure_is_made() -> None:
    """torchmetrics imports it, where it is installed; without that, this package must not."""
    (folder,) = beyondpixel.lightning_modules.__path__
    for file in Path(folder).rglob("*.py"):
        for statement in ast.parse(file.read_text()).body:
            names = [getattr(statement, "module", None), *(alias.name for alias in getattr(statement, "names", ()))]
            assert not any(str(name).startswith("matplotlib") for name in names), file
