"""The choice of crops."""

import numpy as np
import pytest

from beyondpixel.lightning_modules.visualization import Crop, busiest_crop


@pytest.mark.parametrize("seed", range(5))
def test_the_crop_holds_more_than_any_other(seed: int) -> None:
    marked = np.random.default_rng(seed).random((20, 31)) < 0.2
    crop = busiest_crop(marked)
    assert (crop.height, crop.width) == (6, 10)
    counts = {(top, left): marked[top : top + 6, left : left + 10].sum() for top in range(15) for left in range(22)}
    assert counts[crop.top, crop.left] == max(counts.values())


def test_an_image_smaller_than_three_pixels() -> None:
    assert busiest_crop(np.array([[False, True]])) == Crop(0, 1, 1, 1)
