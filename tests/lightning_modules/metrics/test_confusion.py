"""Against NumPy, written independently, and over two real processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray

from beyondpixel.lightning_modules.metrics import MeanIoU

CLASSES = 5


def _labels(seed: int, images: int = 3) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Predictions half right; class 4 is in neither, class 3 only in predictions; a tenth of the target is void."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 3, size=(images, 13, 17))
    preds = np.where(rng.random(target.shape) < 0.5, target, rng.integers(0, 4, size=target.shape))
    target[rng.random(target.shape) < 0.1] = 255
    return preds, target


def _numpy_scores(preds: NDArray[np.int64], target: NDArray[np.int64]) -> dict[str, float]:
    """From the definitions, with sets of pixels and no confusion matrix."""
    counted = target != 255
    preds, target = preds[counted], target[counted]
    ious, recalls = {}, []
    for index in range(CLASSES):
        union = np.sum((preds == index) | (target == index))
        hits = np.sum((preds == index) & (target == index))
        ious[f"IoU/{index}"] = hits / union if union else float("nan")
        if np.any(target == index):
            recalls.append(hits / np.sum(target == index))
    return {
        "mIoU": float(np.mean([iou for iou in ious.values() if not np.isnan(iou)])),
        "pixel_accuracy": float(np.mean(preds == target)),
        "mean_accuracy": float(np.mean(recalls)),
        "frequency_weighted_IoU": float(np.mean([ious[f"IoU/{label}"] for label in target])),
        **ious,
    }


def _assert_same(values: dict[str, torch.Tensor], expected: dict[str, float]) -> None:
    assert list(values) == list(expected)
    np.testing.assert_allclose([value.item() for value in values.values()], list(expected.values()), rtol=1e-12)


def test_equals_numpy_over_the_whole_set() -> None:
    metric = MeanIoU(CLASSES)
    batches = [_labels(seed) for seed in range(3)]
    for preds, target in batches:
        metric.update(torch.from_numpy(preds), torch.from_numpy(target))
    preds, target = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    expected = _numpy_scores(preds, target)
    assert np.isnan(expected["IoU/4"])
    assert expected["IoU/3"] == 0
    _assert_same(metric.compute(), expected)


def test_a_class_that_is_only_predicted_lowers_the_mean() -> None:
    metric = MeanIoU(3, class_names=["sky", "car", "bus"])
    metric.update(torch.tensor([[[0, 0, 1, 2]]]), torch.tensor([[[0, 0, 1, 1]]]))
    metric.confusion_matrix().zero_()  # a copy
    values = metric.compute()
    assert [values[f"IoU/{name}"].item() for name in ("sky", "car", "bus")] == [1, 0.5, 0]
    assert values["mIoU"].item() == pytest.approx(0.5)
    assert values["mean_accuracy"].item() == pytest.approx(0.75)


def test_an_ignored_class_inside_the_range_counts_neither_way() -> None:
    metric = MeanIoU(3, ignore_index=2)
    metric.update(torch.tensor([[[0, 1, 0, 1]]]), torch.tensor([[[0, 1, 2, 2]]]))
    assert metric.compute()["mIoU"].item() == 1.0
    assert torch.isnan(metric.compute()["IoU/2"])


def test_no_counted_pixel_gives_nan() -> None:
    metric = MeanIoU(2)
    metric.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), 255))
    assert all(torch.isnan(value) for value in metric.compute().values())


def test_an_unknown_label_is_refused() -> None:
    metric = MeanIoU(2)
    with pytest.raises(ValueError, match=r"labels \[-1, 2\], expected 0..1 or ignore_index=255"):
        metric.update(torch.zeros(1, 1, 4, dtype=torch.long), torch.tensor([[[0, 2, 255, -1]]]))


def test_an_unknown_prediction_is_refused_where_it_counts() -> None:
    metric, target = MeanIoU(3), torch.tensor([[[0, 1, 255]]])
    metric.update(torch.tensor([[[0, 1, 7]]]), target)
    for wrong in (3, -1, 255):
        with pytest.raises(ValueError, match=rf"preds have the classes \[{wrong}\] where the target is labeled"):
            metric.update(torch.tensor([[[wrong, 1, 0]]]), target)
    assert metric.compute()["mIoU"] == 1


def test_reset_in_inference_mode_does_not_lock_the_counts() -> None:
    metric = MeanIoU(2)
    with torch.inference_mode():
        metric.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
        metric.reset()
    metric.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 1]]]))
    assert metric.compute()["mIoU"].item() == 1.0


def test_shapes_must_agree() -> None:
    metric = MeanIoU(2)
    with pytest.raises(ValueError, match=r"must have one shape, .* got \(1, 2, 2\) and \(1, 2, 3\)"):
        metric.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(1, 2, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], r"class_names must hold num_classes=2 names, got 1"),
        (["a", "b", "c"], r"class_names must hold num_classes=2 names, got 3"),
        (["a", "a"], r"class_names must be distinct"),
    ],
)
def test_names_must_fit(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanIoU(2, class_names=names)


def _score_in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metric = MeanIoU(CLASSES)
    # unequal shares: averaging the two processes' scores would give another result
    for seed in ([0], [1, 2])[rank]:
        preds, target = _labels(seed, images=1 + 3 * seed)
        metric.update(torch.from_numpy(preds), torch.from_numpy(target))
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    # forked processes need not import everything again, which would take most of a minute
    mp.start_processes(_score_in_process, args=(str(tmp_path),), nprocs=2, start_method="fork")
    batches = [_labels(seed, images=1 + 3 * seed) for seed in range(3)]
    preds, target = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    for rank in range(2):
        _assert_same(torch.load(tmp_path / f"{rank}.pt", weights_only=True), _numpy_scores(preds, target))
