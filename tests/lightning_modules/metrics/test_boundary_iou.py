"""Against the authors' procedure (erosion of each class's mask) by SciPy, and by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from beyondpixel.lightning_modules.metrics import BoundaryIoU, boundary_pixel_counts

Make = Callable[..., Any]
Mask = NDArray[np.bool_]


def _strip(mask: Mask, distance: int) -> Mask:
    eroded = ndimage.binary_erosion(mask, structure=np.ones((3, 3)), iterations=distance, border_value=0)
    return mask & ~eroded


def _counts(preds: NDArray[np.int64], target: NDArray[np.int64], classes: int, distance: int) -> NDArray[np.int64]:
    """(2, N, C)."""
    counts = np.zeros((2, len(preds), classes), dtype=np.int64)
    for image in range(len(preds)):
        valid = target[image] != 255
        for index in range(classes):
            in_preds = _strip((preds[image] == index) & valid, distance)
            in_target = _strip(target[image] == index, distance)
            counts[:, image, index] = (in_preds & in_target).sum(), (in_preds | in_target).sum()
    return counts


# diagonals: 64.7 and 152.7 pixels, 2 % of which are 1.3 and 3.05; 12 % are 7.8 and 18.3
@pytest.mark.parametrize(("dilation", "distances"), [(0.02, (1, 3)), (0.12, (8, 18)), (0.001, (1, 1))])
def test_equals_erosion_over_the_whole_set(label_maps: Make, dilation: float, distances: tuple[int, int]) -> None:
    metric = BoundaryIoU(5, class_names=list("abcde"), dilation=dilation)
    totals = np.zeros((2, 5), dtype=np.int64)
    for seed, (size, distance) in enumerate(zip([(37, 53), (90, 123)], distances, strict=True)):
        preds, target = label_maps(seed, size=size)
        expected = _counts(preds, target, 5, distance)
        tensors = torch.from_numpy(preds), torch.from_numpy(target)
        metric.update(*tensors)
        np.testing.assert_array_equal(boundary_pixel_counts(*tensors, num_classes=5, dilation=dilation), expected)
        totals += expected.sum(axis=1)
    iou = totals[0] / np.where(totals[1] == 0, np.nan, totals[1])
    assert np.isnan(iou[4])
    assert iou[3] == 0
    summary = {name: value.item() for name, value in metric.compute().items()}
    assert list(summary) == ["boundary_IoU", *(f"boundary_IoU/{name}" for name in "abcde")]
    np.testing.assert_allclose(list(summary.values()), [np.nanmean(iou), *iou], rtol=1e-12)


def test_equals_a_loop_over_neighborhoods(label_maps: Make) -> None:
    preds, target = label_maps(3, images=1, size=(11, 14))
    masked = np.where(target == 255, 5, preds)
    both = [np.where(target == 255, 5, target)[0], masked[0]]
    strips = np.zeros((2, 11, 14), dtype=bool)
    for which, labels in enumerate(both):
        around = np.pad(labels, 2, constant_values=9)
        for y in range(11):
            for x in range(14):
                window = around[y : y + 5, x : x + 5]
                strips[which, y, x] = labels[y, x] < 5 and (window != labels[y, x]).any()
    intersection, union = boundary_pixel_counts(
        torch.from_numpy(preds), torch.from_numpy(target), num_classes=5, dilation=2 / (11**2 + 14**2) ** 0.5
    )
    for index in range(5):
        in_target, in_preds = ((labels == index) & strip for labels, strip in zip(both, strips, strict=True))
        assert intersection[0, index] == (in_target & in_preds).sum()
        assert union[0, index] == (in_target | in_preds).sum()


def test_a_large_objects_inside_does_not_count() -> None:
    """A 60x60 square shifted by 2 pixels: IoU is 58·60 / 62·60, that of the strips of 2 pixels far lower."""
    target = torch.zeros(1, 80, 100, dtype=torch.long)
    target[:, 10:70, 20:80] = 1
    preds = target.roll(2, dims=2)
    intersection, union = boundary_pixel_counts(preds, target, num_classes=2, dilation=2 / (80**2 + 100**2) ** 0.5)
    # each strip has 60² − 56² pixels. They share the top's and the bottom's 58 columns, two rows each, and no side
    assert intersection[0, 1] == 2 * 2 * 58
    assert union[0, 1] == 2 * (60**2 - 56**2) - 2 * 2 * 58


@pytest.mark.parametrize("dilation", [0, -0.1])
def test_dilation_must_be_positive(dilation: float) -> None:
    with pytest.raises(ValueError, match="dilation must be a positive share of the image's diagonal, got"):
        BoundaryIoU(2, dilation=dilation)


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target has the labels \[7\], expected 0..1"):
        BoundaryIoU(2).update(torch.zeros(1, 1, 2, dtype=torch.long), torch.tensor([[[0, 7]]]))
