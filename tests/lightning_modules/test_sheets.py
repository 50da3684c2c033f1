import numpy as np
import pytest
from PIL import Image

from beyondpixel.lightning_modules.sheets import PAPER, sheet


def _has(picture: Image.Image, color: tuple[int, int, int]) -> bool:
    return bool((np.asarray(picture) == color).all(-1).any())


def _grey(height: int = 30, width: int = 40) -> np.ndarray:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def test_legend_colours_are_drawn_below() -> None:
    plain = sheet({"image": [_grey()]})
    with_legend = sheet({"image": [_grey()]}, legends={"Classes": {"road": (1, 2, 3), "car": (4, 5, 6)}})
    assert with_legend.height > plain.height
    assert _has(with_legend, (1, 2, 3))
    assert _has(with_legend, (4, 5, 6))
    assert not _has(plain, (1, 2, 3))


def test_a_long_legend_stays_on_the_sheet() -> None:
    swatches = {f"a rather long name {index}": (index, 200, 3) for index in range(40)}
    picture = sheet({"image": [_grey()]}, legends={"Classes": swatches})
    assert all(_has(picture, color) for color in swatches.values())
    border = np.asarray(picture)[:, -10:]
    assert (border == PAPER).all()


def test_long_headings_and_titles_are_wrapped() -> None:
    words = "several words " * 20
    short = sheet({"image": [_grey()], "truth": [_grey()]}, heading="short")
    for picture in (
        sheet({"image": [_grey()], "truth": [_grey()]}, heading=words),
        sheet({"image": [_grey()], f"RMI\n{words}": [_grey()]}, heading="short"),
    ):
        assert picture.width == short.width
        assert picture.height > short.height
        assert (np.asarray(picture)[:, -10:] == PAPER).all()


def test_small_pictures_are_enlarged_by_whole_factors_and_very_large_ones_reduced() -> None:
    for size, shown in (((30, 100), (120, 400)), ((300, 500), (300, 500)), ((1024, 2048), (400, 800))):
        picture = sheet({"image": [_grey(*size)]})
        rows, cols = np.nonzero((np.asarray(picture) == 90).all(-1))
        assert (rows.max() - rows.min() + 1, cols.max() - cols.min() + 1) == shown


def test_rows_and_columns_add_up() -> None:
    pixels = np.asarray(sheet({"image": [_grey()] * 3, "truth": [_grey()] * 3}))
    grey = (pixels == 90).all(-1)
    assert grey.sum() == 6 * 320 * 240


def test_signs_beyond_ascii_are_drawn() -> None:
    """Pillow's typeface shows × as an empty box; both texts would then look alike."""
    one, other = (np.asarray(sheet({"image": [_grey()]}, heading=f"240{sign}180")) for sign in "×÷")
    assert (one != other).any()
    assert (one != np.asarray(sheet({"image": [_grey()]}, heading="240\u4e00180"))).any()


@pytest.mark.parametrize("columns", [{}, {"image": []}, {"image": [_grey()], "truth": []}])
def test_columns_must_match(columns: dict[str, list[np.ndarray]]) -> None:
    with pytest.raises(ValueError, match="columns must hold equally many pictures, at least one, got"):
        sheet(columns)
