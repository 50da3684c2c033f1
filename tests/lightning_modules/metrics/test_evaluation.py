"""All metrics together: in one pass, in one process or two, alone or in a collection."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import MetricCollection

from beyondpixel.lightning_modules.metrics import (
    BoundaryF,
    BoundaryIoU,
    EvaluationMetrics,
    MeanIoU,
    ObjectSizeIoU,
    PixelCountsPerImage,
    TrimapIoU,
    boundary_pixel_counts,
    mean_over_classes,
)

Make = Callable[..., Any]
NAMES = list("abcde")
README = Path(__file__).resolve().parents[3] / "lightning_modules" / "metrics" / "README.md"
# of label_maps(seed) for seeds 0, 1, 2 at the default size, as first published; each is checked by a loop elsewhere
KNOWN = {
    "mIoU": 0.32568267121060934,
    "pixel_accuracy": 0.58,
    "mean_accuracy": 0.5808509438034456,
    "frequency_weighted_IoU": 0.43544811607393413,
    "IoU/a": 0.4250716705759708,
    "IoU/b": 0.4485630987088713,
    "IoU/c": 0.42909591555759524,
    "IoU/d": 0.0,
    "IoU/e": float("nan"),
    "boundary_IoU": 0.16935495767017444,
    "boundary_IoU/a": 0.20817588457574718,
    "boundary_IoU/b": 0.24293133294864397,
    "boundary_IoU/c": 0.22631261315630657,
    "boundary_IoU/d": 0.0,
    "boundary_IoU/e": float("nan"),
    "boundary_F": 0.2071424664932389,
    "boundary_F/a": 0.24670658682634727,
    "boundary_F/b": 0.3097686375321337,
    "boundary_F/c": 0.2720946416144746,
    "boundary_F/d": 0.0,
    "boundary_F/e": float("nan"),
    "trimap_mIoU/1": 0.26013992974640937,
    "trimap_mIoU/2": 0.3005758766449316,
    "trimap_mIoU/4": 0.3244131613790179,
    "trimap_mIoU/8": 0.3257349950692709,
    "trimap_mIoU/16": 0.32568267121060934,
    "IoU_small": 0.32568267121060934,
    "IoU_medium": float("nan"),
    "IoU_large": float("nan"),
}


def _metrics(maps: list[Any], ids: list[str]) -> EvaluationMetrics:
    metrics = EvaluationMetrics(5, class_names=NAMES, boundaries=True)
    for (preds, target), name in zip(maps, ids, strict=True):
        metrics.update(torch.from_numpy(preds), torch.from_numpy(target), [name])
    return metrics


def test_names_and_values_stay_what_they_are(label_maps: Make) -> None:
    metrics = EvaluationMetrics(5, class_names=NAMES, boundaries=True)
    for seed in range(3):
        metrics.update(*map(torch.from_numpy, label_maps(seed)))
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert list(values) == list(KNOWN)
    np.testing.assert_allclose(list(values.values()), list(KNOWN.values()), rtol=1e-12)


def test_each_metric_gives_the_same_alone_and_in_a_collection(label_maps: Make) -> None:
    classes = (MeanIoU, BoundaryIoU, BoundaryF, TrimapIoU, ObjectSizeIoU)
    metrics: list[Any] = [metric(5, class_names=NAMES) for metric in classes]
    collection = MetricCollection([metric(5, class_names=NAMES) for metric in classes], prefix="val/")
    both = EvaluationMetrics(5, class_names=NAMES, boundaries=True)
    preds, target = map(torch.from_numpy, label_maps(0))
    alone = {}
    for metric in metrics:
        alone |= metric(preds, target)  # forward: the batch's values
        assert metric.compute().keys() <= alone.keys()
    collection.update(preds, target)
    both.update(preds, target)
    together = collection.compute()
    for name, value in both.compute().items():
        torch.testing.assert_close(alone.pop(name), value, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(together.pop(f"val/{name}"), value, rtol=0, atol=0, equal_nan=True)
    assert not alone
    assert not together


@pytest.mark.parametrize("metric", [MeanIoU, BoundaryIoU, BoundaryF, TrimapIoU, ObjectSizeIoU])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.uint16, torch.int8, torch.int32])
def test_labels_of_every_integer_type_give_the_same(label_maps: Make, metric: Any, dtype: torch.dtype) -> None:
    """300 and 256 are 44 and 0 in eight bits."""
    preds, target = (torch.from_numpy(labels) for labels in label_maps(0, void=False))
    if dtype == torch.bool:
        preds, target = preds.clamp_max(1), target.clamp_max(1)
    narrow, wide = (metric(300, ignore_index=256) for _ in range(2))
    narrow.update(preds.to(dtype), target.to(dtype))
    wide.update(preds, target)
    assert torch.equal(narrow.counts, wide.counts)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_counts_of_each_image_are_the_same_for_labels_of_eight_bits(label_maps: Make, dtype: torch.dtype) -> None:
    preds, target = label_maps(0, void=False)
    metric = PixelCountsPerImage(5, ignore_index=256, boundaries=True)
    metric.update(torch.from_numpy(preds).to(dtype), torch.from_numpy(target).to(dtype), ["a", "b"])
    counts = metric.compute()
    assert counts is not None
    np.testing.assert_array_equal(counts.target, [np.bincount(image.ravel(), minlength=5) for image in target])
    expected = boundary_pixel_counts(*map(torch.from_numpy, (preds, target)), num_classes=5)
    for ours, theirs in zip((counts.boundary_intersection, counts.boundary_union), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    strips = boundary_pixel_counts(
        *(torch.from_numpy(labels).to(dtype) for labels in (preds, target)), num_classes=5, ignore_index=256
    )
    assert torch.equal(strips, expected)


def test_another_void_label_gives_the_same(label_maps: Make) -> None:
    preds, target = map(torch.from_numpy, label_maps(0))
    usual, other = EvaluationMetrics(5, boundaries=True), EvaluationMetrics(5, ignore_index=9, boundaries=True)
    usual.update(preds, target, ["x", "y"])
    other.update(preds, target.masked_fill(target == 255, 9), ["x", "y"])
    torch.testing.assert_close(other.compute(), usual.compute(), rtol=0, atol=0, equal_nan=True)
    for ours, theirs in zip(other.image_counts() or (), usual.image_counts() or (), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("metric", [MeanIoU, BoundaryF, ObjectSizeIoU])
def test_labels_that_are_not_integers_are_rejected(metric: Any) -> None:
    """Some of these metrics would round probabilities down to class 0."""
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(TypeError, match=r"preds must be integers \(N, H, W\), got torch.float32; use logits.argmax"):
        metric(2).update(labels.float(), labels)
    with pytest.raises(TypeError, match=r"target must be integers \(N, H, W\), got torch.float64; use target.long"):
        metric(2).update(labels, labels.double())
    with pytest.raises(TypeError, match=r"preds must be integers \(N, H, W\), got torch.complex64"):
        metric(2).update(labels.to(torch.complex64), labels)


def test_metrics_of_equal_counts_stay_apart_in_a_collection() -> None:
    """After a batch of void all counts are zero, and those of two classes have one shape as well."""
    collection = MetricCollection([MeanIoU(2), BoundaryIoU(2)])
    preds, target = torch.zeros(1, 9, 9, dtype=torch.long), torch.full((1, 9, 9), 255)
    collection.update(preds, target)
    preds, target = preds + 1, target.clone().fill_(1)
    preds[:, 4, 4] = 0  # far from every boundary of the target
    collection.update(preds, target)
    values = collection.compute()
    assert values["mIoU"].item() == pytest.approx(80 / 81 / 2)
    assert values["boundary_IoU"].item() == pytest.approx(32 / 40 / 2)


def test_counts_of_each_image_add_up_to_the_metrics(label_maps: Make) -> None:
    metrics = EvaluationMetrics(5, class_names=NAMES, boundaries=True)
    for seed in range(3):
        preds, target = label_maps(seed, images=2)
        metrics.update(torch.from_numpy(preds), torch.from_numpy(target), [f"{seed}a", f"{seed}b"])
        for image, name in enumerate(("a", "b")):
            counts = metrics.image_counts()
            assert counts is not None
            row = counts.id.index(f"{seed}{name}")
            valid = target[image] != 255
            for index in range(5):
                is_pred, is_true = (preds[image] == index) & valid, target[image] == index
                assert counts.intersection[row, index] == (is_pred & is_true).sum()
                assert counts.predicted[row, index] == is_pred.sum()
                assert counts.target[row, index] == is_true.sum()
    assert counts.id == ["0a", "0b", "1a", "1b", "2a", "2b"]
    values = metrics.compute()
    union = (counts.predicted + counts.target - counts.intersection).sum(axis=0)
    iou = counts.intersection.sum(axis=0) / np.where(union == 0, np.nan, union)
    assert values["mIoU"].item() == pytest.approx(np.nanmean(iou), rel=1e-12)
    np.testing.assert_allclose([value.item() for value in metrics.class_iou().values()], iou, rtol=1e-12)
    assert list(metrics.class_iou()) == NAMES
    matrix = metrics.confusion_matrix().numpy()
    np.testing.assert_array_equal(matrix.diagonal(), counts.intersection.sum(axis=0))
    np.testing.assert_array_equal(matrix.sum(axis=1), counts.target.sum(axis=0))
    assert counts.boundary_intersection is not None
    assert counts.boundary_union is not None
    strips = counts.boundary_union.sum(axis=0)
    boundary_iou = counts.boundary_intersection.sum(axis=0) / np.where(strips == 0, np.nan, strips)
    assert values["boundary_IoU"].item() == pytest.approx(np.nanmean(boundary_iou), rel=1e-12)


def test_the_mean_over_some_classes(label_maps: Make) -> None:
    values = _metrics([label_maps(0, images=1)], ["x"]).compute()
    (mean,) = mean_over_classes(values, list("acde")).values()
    assert mean.item() == pytest.approx(np.nanmean([values[f"IoU/{name}"].item() for name in "acde"]), rel=1e-12)
    assert mean != values["mIoU"]


def test_reset_in_inference_mode_forgets_everything(label_maps: Make) -> None:
    metrics = EvaluationMetrics(5, class_names=NAMES, boundaries=True)
    with torch.inference_mode():
        preds, target = label_maps(0)
        metrics.update(torch.from_numpy(preds), torch.from_numpy(target), ["x", "y"])
        metrics.reset()
    assert metrics.image_counts() is None
    again, fresh = label_maps(1, images=1), _metrics([label_maps(1, images=1)], ["z"])
    metrics.update(*map(torch.from_numpy, again), ["z"])
    for name, value in metrics.compute().items():
        torch.testing.assert_close(value, fresh.compute()[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("metric", [MeanIoU, BoundaryIoU, BoundaryF, TrimapIoU, ObjectSizeIoU])
def test_counts_of_a_call_in_inference_mode_can_be_added_to_outside_of_it(label_maps: Make, metric: Any) -> None:
    ours, expected = metric(5), metric(5)
    batches = [[torch.from_numpy(labels) for labels in label_maps(seed)] for seed in range(2)]
    for preds, target in batches:
        expected.update(preds, target)
    with torch.inference_mode():
        ours(*batches[0])
    ours.update(*batches[1])
    assert torch.equal(ours.counts, expected.counts)


def test_images_with_one_id_are_not_kept(label_maps: Make) -> None:
    with pytest.warns(UserWarning, match="two images have the same id"):
        assert _metrics([label_maps(0, images=1)] * 2, ["x", "x"]).image_counts() is None


def test_without_boundaries_or_ids(label_maps: Make) -> None:
    metrics = EvaluationMetrics(5)
    preds, target = map(torch.from_numpy, label_maps(0))
    metrics.update(preds, target)
    assert metrics.image_counts() is None
    assert not [name for name in metrics.compute() if "boundary" in name or "trimap" in name or "small" in name]
    metrics.update(preds, target, ["x", "y"])
    counts = metrics.image_counts()
    assert counts is not None
    assert counts.boundary_union is None


def test_pixel_counts_keep_all_batches_if_the_metric_is_called(label_maps: Make) -> None:
    """A call returns the counts of its batch, alone and in a collection, which call the metric's forward."""
    metric = PixelCountsPerImage(5)
    collection = MetricCollection([PixelCountsPerImage(5), MeanIoU(5)])
    targets = []
    for seed in range(3):
        preds, target = map(torch.from_numpy, label_maps(seed))
        names = [f"{seed}a", f"{seed}b"]
        of_batch = [np.bincount(image.ravel(), minlength=256)[:5] for image in target.numpy()]
        targets += of_batch
        for counts in (metric(preds, target, names), collection(preds, target, ids=names)["PixelCountsPerImage"]):
            assert counts.id == names
            np.testing.assert_array_equal(counts.target, of_batch)
    for counts in (metric.compute(), collection.compute()["PixelCountsPerImage"]):
        assert counts.id == ["0a", "0b", "1a", "1b", "2a", "2b"]
        np.testing.assert_array_equal(counts.target, targets)


@pytest.mark.parametrize("ids", [["a"], ["a", "b", "c"], "ab"])
def test_pixel_counts_need_a_name_for_each_image(label_maps: Make, ids: Any) -> None:
    metric = PixelCountsPerImage(5)
    with pytest.raises(ValueError, match="ids must be 2 names, one for each image of target, got"):
        metric.update(*map(torch.from_numpy, label_maps(0)), ids)


def test_pixel_counts_check_their_labels() -> None:
    with pytest.raises(ValueError, match=r"target has the labels \[7\], expected 0..1"):
        PixelCountsPerImage(2).update(torch.zeros(1, 1, 2, dtype=torch.long), torch.tensor([[[0, 7]]]), ["a"])


def test_every_name_is_explained(label_maps: Make) -> None:
    explained = README.read_text()
    for name in [*_metrics([label_maps(0, images=1)], ["x"]).compute(), "mIoU_<k>"]:
        first, _, last = name.partition("/")
        last = {"": "", **dict.fromkeys(NAMES, "/<class>")}.get(last, "/<width>")
        assert f"`{first}{last}`" in explained, name


def _evaluate_in_process(rank: int, folder: str, shares: list[list[tuple[str, Any]]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metrics = EvaluationMetrics(5, class_names=NAMES, boundaries=True)
    for name, (preds, target) in shares[rank]:
        metrics.update(torch.from_numpy(preds), torch.from_numpy(target), [name])
    results = {
        "values": metrics.compute(),
        "images": tuple(metrics.image_counts() or ()),
        "matrix": metrics.confusion_matrix(),
        "again": metrics.compute(),
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("filler", [True, False])
def test_two_processes_equal_one(label_maps: Make, tmp_path: Path, filler: bool) -> None:
    """Five images in turn; the second process is short of one, and gets the first image again, void, where filled."""
    images = [(f"image{index}", label_maps(index, images=1, size=(20 + index, 31))) for index in range(5)]
    alone = _metrics([maps for _, maps in images], [name for name, _ in images])
    expected = alone.image_counts()
    assert expected is not None
    name, (preds, target) = images[0]
    shares = [images[0::2], images[1::2] + [(name, (preds, np.full_like(target, 255)))] * filler]
    # forked processes need not import everything again, which would take most of a minute
    mp.start_processes(_evaluate_in_process, args=(str(tmp_path), shares), nprocs=2, start_method="fork")
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert saved["images"][0] == expected.id
        for ours, theirs in zip(saved["images"][1:], expected[1:], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert torch.equal(saved["matrix"], alone.confusion_matrix())
        for values in (saved["values"], saved["again"]):
            assert list(values) == list(alone.compute())
            for metric, value in alone.compute().items():
                torch.testing.assert_close(values[metric], value, rtol=1e-12, atol=0, equal_nan=True)
