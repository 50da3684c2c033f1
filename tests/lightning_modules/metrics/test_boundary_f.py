"""Against exact distances between boundary pixels (SciPy), and by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from beyondpixel.lightning_modules.metrics import BoundaryF

Make = Callable[..., Any]
Labels = NDArray[np.int64]


def _boundary(labels: Labels, index: int) -> NDArray[np.bool_]:
    """Pixel by pixel, from the definition."""
    height, width = labels.shape
    boundary = np.zeros(labels.shape, dtype=bool)
    for y, x in np.argwhere(labels == index):
        neighbors = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        boundary[y, x] = any(0 <= v < height and 0 <= u < width and labels[v, u] != index for v, u in neighbors)
    return boundary


def _close(pixels: NDArray[np.bool_], others: NDArray[np.bool_], radius: float) -> int:
    if not others.any():
        return 0
    return int((pixels & (ndimage.distance_transform_edt(~others) <= radius)).sum())


def _expected(batches: list[tuple[Labels, Labels]], classes: int, radii: list[float]) -> list[float]:
    scores = []
    for index in range(classes):
        true = found = predicted = right = 0
        for (preds, target), radius in zip(batches, radii, strict=True):
            for p, t in zip(np.where(target == 255, -1, preds), target, strict=True):
                in_preds, in_target = _boundary(p, index), _boundary(t, index)
                true, found = true + in_target.sum(), found + _close(in_target, in_preds, radius)
                predicted, right = predicted + in_preds.sum(), right + _close(in_preds, in_target, radius)
        # 2PR/(P+R) written without P and R, which may be 0/0
        if true + predicted == 0:
            scores.append(float("nan"))
        elif found == 0 or right == 0:
            scores.append(0.0)
        else:
            scores.append(2 / (predicted / right + true / found))
    return scores


def _per_class(metric: BoundaryF) -> list[float]:
    return [value.item() for name, value in metric.compute().items() if "/" in name]


@pytest.mark.parametrize("classes", [5, 64])
@pytest.mark.parametrize("tolerance", [0.0, 0.0075, 0.04])
def test_equals_distances_over_the_whole_set(label_maps: Make, tolerance: float, classes: int) -> None:
    sizes = [(37, 53), (60, 83)]
    batches = [label_maps(seed, size=size, classes=classes) for seed, size in enumerate(sizes)]
    metric = BoundaryF(classes, tolerance=tolerance)
    for preds, target in batches:
        metric.update(torch.from_numpy(preds), torch.from_numpy(target))
    radii = [tolerance * (height**2 + width**2) ** 0.5 for height, width in sizes]
    expected = _expected(batches, classes, radii)
    assert np.isnan(expected[-1])
    assert 0 < np.nanmean(expected) < 1
    summary = {name: value.item() for name, value in metric.compute().items()}
    np.testing.assert_allclose(list(summary.values()), [np.nanmean(expected), *expected], rtol=1e-12)


@pytest.mark.parametrize("radius", [1, 1.5, 2, 2.9, 5, 12])
def test_tolerance_in_pixels(label_maps: Make, radius: float) -> None:
    preds, target = label_maps(5, size=(9, 31))
    metric = BoundaryF(5, tolerance=radius, unit="pixels")
    metric.update(torch.from_numpy(preds), torch.from_numpy(target))
    np.testing.assert_allclose(_per_class(metric), _expected([(preds, target)], 5, [radius]), rtol=1e-12)


def test_an_edge_to_void_is_an_edge_in_both() -> None:
    """PASCAL VOC surrounds its objects with void: the target has no other edges."""
    target = torch.tensor([[[0, 0, 0, 255, 1, 1, 1]]])
    metric = BoundaryF(2, tolerance=0, unit="pixels")
    metric.update(torch.tensor([[[0, 0, 0, 0, 1, 1, 1]]]), target)
    assert _per_class(metric) == [1, 1]
    metric.reset()
    metric.update(torch.tensor([[[0, 0, 1, 1, 1, 1, 1]]]), target)
    # zeros end one pixel early; ones have edges at 2 (twice over: to 0 and to void) and at 4
    assert _per_class(metric) == [0, pytest.approx(2 / (2 / 1 + 1 / 1))]


def test_by_default_the_tolerance_is_the_papers() -> None:
    """0.75 % of 500 pixels are 3.75: a boundary 3 pixels off is found, one 4 pixels off is not."""
    target = torch.zeros(1, 300, 400, dtype=torch.long)
    target[..., 200:] = 1
    for shift, score in ((3, 1.0), (4, 0.0)):
        metric = BoundaryF(2)
        preds = torch.zeros_like(target)
        preds[..., 200 + shift :] = 1
        metric.update(preds, target)
        assert _per_class(metric) == [score, score]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": -1}, "tolerance must be 0 or more, got -1"),
        ({"unit": "px"}, "unit must be 'diagonal' or 'pixels', got 'px'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoundaryF(2, **arguments)
