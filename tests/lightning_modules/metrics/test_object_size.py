"""Against a loop over SciPy's components, and by hand."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from beyondpixel.lightning_modules.metrics import ObjectSizeIoU

Make = Callable[..., Any]
Labels = NDArray[np.int64]


def _objects(labels: Labels, index: int) -> list[set[tuple[int, int]]]:
    numbers, count = ndimage.label(labels == index, structure=np.ones((3, 3)))
    return [set(map(tuple, np.argwhere(numbers == number).tolist())) for number in range(1, count + 1)]


def _size(area: int, bounds: tuple[int, int]) -> int:
    return 0 if area < bounds[0] else 1 if area < bounds[1] else 2


def _expected(batches: list[tuple[Labels, Labels]], classes: int, bounds: tuple[int, int]) -> list[float]:
    found, true, wrong = Counter[Any](), Counter[Any](), Counter[Any]()
    known = (
        (np.where(t == 255, -1, p), np.where(t == 255, -1, t)) for maps in batches for p, t in zip(*maps, strict=True)
    )
    for preds, target in known:
        for index in range(classes):
            objects = _objects(target, index)
            parts = _objects(preds, index)
            predicted = set().union(*parts)
            for thing in objects:
                true[_size(len(thing), bounds), index] += len(thing)
                found[_size(len(thing), bounds), index] += len(thing & predicted)
            for part in parts:
                covered, area = max(((len(thing & part), len(thing)) for thing in objects), default=(0, 0))
                own = area if covered else len(part)
                wrong[_size(own, bounds), index] += len(part - set().union(*objects))
    means = []
    for size in range(3):
        ious = [
            found[size, index] / (true[size, index] + wrong[size, index])
            for index in range(classes)
            if true[size, index] + wrong[size, index]
        ]
        means.append(float(np.mean(ious)) if ious else float("nan"))
    return means


@pytest.mark.parametrize(("classes", "bounds"), [(5, (20, 150)), (5, (32**2, 96**2)), (300, (6, 40))])
def test_equals_a_loop_over_components(label_maps: Make, classes: int, bounds: tuple[int, int]) -> None:
    batches = [label_maps(seed, size=size, classes=6) for seed, size in enumerate([(37, 53), (60, 83)])]
    if classes == 300:  # more than a byte holds
        batches = [(preds + 290, np.where(target == 255, 255, target + 290)) for preds, target in batches]
    else:
        batches = [(preds.clip(max=4), np.where(target == 255, 255, target.clip(max=4))) for preds, target in batches]
    metric = ObjectSizeIoU(classes, bounds=bounds)
    for preds, target in batches:
        metric.update(torch.from_numpy(preds), torch.from_numpy(target))
    values = metric.compute()
    assert list(values) == ["IoU_small", "IoU_medium", "IoU_large"]
    expected = _expected(batches, classes, bounds)
    np.testing.assert_allclose([value.item() for value in values.values()], expected, rtol=1e-12)


def test_wrong_pixels_count_for_the_object_that_their_component_covers() -> None:
    """A car of 4 pixels and one of 40, one prediction over both: what it adds counts for the large one."""
    target = np.zeros((1, 12, 30), dtype=np.int64)
    target[0, 2:4, 2:4] = 1
    target[0, 2:6, 10:20] = 1
    preds = target.copy()
    preds[0, 2, 4:10] = 1  # a bridge of 6 pixels
    preds[0, 10, 5:8] = 1  # 3 pixels that cover nothing
    metric = ObjectSizeIoU(2, bounds=(10, 1000))
    metric.update(torch.from_numpy(preds), torch.from_numpy(target))
    found, true, wrong = metric.counts[:, :, 1].tolist()
    assert found == true == [4, 40, 0]
    assert wrong == [3, 6, 0]


@pytest.mark.parametrize(("of_large", "size"), [(3, "small"), (4, "medium"), (5, "medium")])
def test_a_component_belongs_to_the_object_that_it_covers_most_of(of_large: int, size: str) -> None:
    """It covers all 4 pixels of a small car, 3 to 5 of a large one's 40, and 6 of the road."""
    target = np.zeros((1, 12, 30), dtype=np.int64)
    target[0, 2:4, 2:4] = 1
    target[0, 2:6, 10:20] = 1
    preds = np.zeros_like(target)
    preds[0, 2:4, 2:4] = 1
    preds[0, 2, 4 : 10 + of_large] = 1
    for step in (1, -1):  # the small one first, and the large one
        metric = ObjectSizeIoU(2, bounds=(10, 1000))
        metric.update(*(torch.from_numpy(labels[..., ::step].copy()) for labels in (preds, target)))
        _, _, wrong = metric.counts[:, :, 1].tolist()
        assert wrong == ([6, 0, 0] if size == "small" else [0, 6, 0])


def test_cocos_bounds() -> None:
    """Squares of 31, 32, 95 and 96 pixels: small below 32², large from 96² on."""
    target = torch.zeros(1, 100, 300, dtype=torch.long)
    for left, side in ((0, 31), (40, 32), (80, 95), (180, 96)):
        target[0, :side, left : left + side] = 1
    metric = ObjectSizeIoU(2)
    metric.update(target, target)
    _, true, _ = metric.counts
    assert true[:, 1].tolist() == [31**2, 32**2 + 95**2, 96**2]


def test_diagonal_neighbors_are_one_object() -> None:
    metric = ObjectSizeIoU(2, bounds=(2, 3))
    eye = torch.eye(3, dtype=torch.long)[None]
    metric.update(eye, eye)
    _, true, _ = metric.counts
    assert true[:, 1].tolist() == [0, 0, 3]
    assert true[:, 0].tolist() == [0, 0, 6]


def test_all_void() -> None:
    metric = ObjectSizeIoU(2)
    metric.update(torch.zeros(1, 4, 4, dtype=torch.long), torch.full((1, 4, 4), 255))
    assert all(value.isnan() for value in metric.compute().values())


@pytest.mark.parametrize("bounds", [(0, 5), (5, 5), (9, 4)])
def test_bounds_must_ascend(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="bounds must be two areas in pixels, positive and ascending, got"):
        ObjectSizeIoU(2, bounds=bounds)
