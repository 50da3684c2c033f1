"""Framed windows and what is chosen for them."""

import numpy as np
import pytest

from beyondpixel.lightning_modules.details import Window, busiest_window, with_details


@pytest.mark.parametrize("seed", range(5))
def test_the_window_holds_more_than_any_other(seed: int) -> None:
    marked = np.random.default_rng(seed).random((20, 31)) < 0.2
    window = busiest_window(marked)
    assert (window.height, window.width) == (6, 10)
    counts = {(top, left): marked[top : top + 6, left : left + 10].sum() for top in range(15) for left in range(22)}
    assert counts[window.top, window.left] == max(counts.values())


def test_a_picture_smaller_than_three_pixels() -> None:
    assert busiest_window(np.array([[False, True]])) == Window(0, 1, 1, 1)


def test_the_detail_is_the_windows_pixels_three_times_as_large_and_the_picture_keeps_its_own() -> None:
    picture = np.random.default_rng(0).integers(1, 250, (12, 15, 3), dtype=np.uint8)
    original = picture.copy()
    framed, detail = with_details([picture], [Window(4, 5, 4, 5)])
    np.testing.assert_array_equal(picture, original)
    np.testing.assert_array_equal(detail[::3, ::3], original[4:8, 5:10])
    np.testing.assert_array_equal(detail[2::3, 1::3], original[4:8, 5:10])
    changed = (framed != original).any(-1)
    inside = np.zeros((12, 15), bool)
    inside[4:8, 5:10] = True
    assert changed.any()
    assert not (changed & ~inside).any()
    assert (framed[4, 5:10] == 0).all()
    assert (framed[5, 6:9] == 255).all()
