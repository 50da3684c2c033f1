"""Label maps with objects of several sizes."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

Maps = tuple[NDArray[np.int64], NDArray[np.int64]]


@pytest.fixture
def label_maps() -> Callable[..., Maps]:
    """Makes (N, H, W) predictions and target: blobs, the prediction's displaced and speckled, void here and there.

    The last class is in neither, the one before it in predictions only.
    """

    def make(
        seed: int, *, images: int = 2, size: tuple[int, int] = (37, 53), classes: int = 5, void: bool = True
    ) -> Maps:
        rng = np.random.default_rng(seed)

        def blobs(known: int, smoothness: float) -> NDArray[np.int64]:
            noise = rng.normal(size=(known, images, *size))
            smooth = ndimage.gaussian_filter(noise, sigma=(0, 0, smoothness, smoothness))
            return smooth.argmax(axis=0).astype(np.int64)

        target = blobs(classes - 2, 3.0)
        preds = np.where(blobs(4, 4.0) == 0, blobs(classes - 1, 2.0), np.roll(target, (1, 2), axis=(1, 2)))
        preds = np.where(rng.random(target.shape) < 0.01, classes - 2, preds)
        if void:
            target[blobs(6, 2.0) == 0] = 255
        return preds, target

    return make
