"""Against SciPy's chessboard distances and sets of pixels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from beyondpixel.lightning_modules.metrics import MeanIoU, TrimapIoU

Make = Callable[..., Any]


def _distance_to_other_label(target: NDArray[np.int64]) -> NDArray[np.float64]:
    distance = np.full(target.shape, np.inf)
    for label in np.unique(target):
        own = target == label
        if not own.all():
            distance[own] = ndimage.distance_transform_cdt(own, metric="chessboard")[own]
    return distance


@pytest.mark.parametrize("widths", [(1, 2, 4, 8, 16), (3, 5), (30,)])
def test_equals_distances_over_the_whole_set(label_maps: Make, widths: tuple[int, ...]) -> None:
    batches = [label_maps(seed, size=size) for seed, size in enumerate([(37, 53), (60, 83)])]
    metric = TrimapIoU(5, widths=widths)
    for preds, target in batches:
        metric.update(torch.from_numpy(preds), torch.from_numpy(target))
    preds, target, distance = (
        np.concatenate([np.stack(maps).ravel() for maps in column])
        for column in zip(*[(p, t, [_distance_to_other_label(image) for image in t]) for p, t in batches], strict=True)
    )
    values = metric.compute()
    assert list(values) == [f"trimap_mIoU/{width}" for width in widths]
    for width, score in zip(widths, values.values(), strict=True):
        band = (distance <= width) & (target != 255)
        ious = []
        for index in range(5):
            union = (band & ((preds == index) | (target == index))).sum()
            if union:
                ious.append((band & (preds == index) & (target == index)).sum() / union)
        assert score.item() == pytest.approx(np.mean(ious), rel=1e-12)


def test_the_widest_band_is_the_whole_image(label_maps: Make) -> None:
    preds, target = (torch.from_numpy(maps) for maps in label_maps(0))
    metric, whole = TrimapIoU(5, widths=(60,)), MeanIoU(5)
    metric.update(preds, target)
    whole.update(preds, target)
    assert metric.compute()["trimap_mIoU/60"].item() == pytest.approx(whole.compute()["mIoU"].item(), rel=1e-12)


def test_an_image_of_one_class_has_no_boundary() -> None:
    metric = TrimapIoU(2)
    metric.update(torch.zeros(1, 20, 20, dtype=torch.long), torch.zeros(1, 20, 20, dtype=torch.long))
    assert all(value.isnan() for value in metric.compute().values())


@pytest.mark.parametrize("widths", [(), (0, 1), (4, 2), (2, 2)])
def test_widths_must_ascend(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"widths must be ascending numbers of pixels, 1 or more, got \["):
        TrimapIoU(2, widths=widths)
