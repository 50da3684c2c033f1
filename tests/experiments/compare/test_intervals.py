"""Intervals of compared rows, from the pixel counts in their runs' folders."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beyondpixel.experiments.bootstrap import difference_interval, mean_interval, resampled_scores
from beyondpixel.experiments.compare.command import as_text
from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.compare.rows import compare_runs
from beyondpixel.experiments.image_counts import ImageCounts
from beyondpixel.experiments.run.folder import RunFolder


def random_counts(seed: int, images: int = 12, classes: int = 4) -> ImageCounts:
    generator = np.random.default_rng(seed)
    confusion = generator.integers(0, 50, size=(images, classes, classes))
    names = np.array([f"{index:02}" for index in range(images)])
    return ImageCounts(names, np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1), confusion.sum(2))


def _arrays(counts: ImageCounts) -> tuple[Any, Any, Any]:
    return counts.intersection, counts.predicted, counts.target


def test_rows_get_intervals_from_their_folders(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    """Images may come in any order; the interval is that of the sorted ones."""
    runs = {row: [random_counts(10 * k + s) for s in (1, 2)] for k, row in enumerate(["ce", "rmi"])}
    for row, group in runs.items():
        for seed, counts in enumerate(group, start=1):
            order = np.random.default_rng(seed).permutation(len(counts))
            shuffled = tuple(array[order] for array in _arrays(counts))
            names = [counts.id[index] for index in order]
            make_run(tmp_path, row, seed, counts.mean_iou(), counts=shuffled, ids=names)
    rows = compare_runs(read_runs([tmp_path]), "test/mIoU").rows.set_index("row")
    drawn = {row: [resampled_scores(counts) for counts in group] for row, group in runs.items()}
    assert interval(rows.loc["rmi"]) == difference_interval(drawn["ce"], drawn["rmi"])
    assert rows.loc["rmi", "difference_low"] < rows.loc["rmi", "difference"] < rows.loc["rmi", "difference_high"]
    assert math.isnan(rows.loc["ce", "difference_low"])
    assert (rows.loc["ce", "low"], rows.loc["ce", "high"]) == mean_interval(drawn["ce"])
    assert rows.loc["ce", "images"] == 12


def interval(row: Any) -> tuple[float, float]:
    return row["difference_low"], row["difference_high"]


def compared(folder: Path, metric: str = "test/mIoU", row: str = "rmi") -> Any:
    return compare_runs(read_runs([folder]), metric).rows.set_index("row").loc[row]


def test_what_was_drawn_is_said(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    for row, seeds in (("ce", (1, 2)), ("bce", (1, 2)), ("rmi", (1,))):
        for seed in seeds:
            counts = random_counts(seed)
            make_run(tmp_path, row, seed, counts.mean_iou(), counts=_arrays(counts))
    text = as_text(compare_runs(read_runs([tmp_path]), "test/mIoU"), "md")
    assert "two-level bootstrap over the n seeds of both rows and 12 test images, 5,000 draws" in text
    assert "With one seed on a side (rmi) only images are drawn on that side: the interval speaks of this one" in text
    text = as_text(compare_runs(read_runs([tmp_path]), "test/mIoU", baseline="rmi"), "md")
    assert "With one seed on a side (bce, ce) only images are drawn on that side" in text
    for row, seed in (("ce", 1), ("rmi", 2)):
        counts = random_counts(seed, images=5)
        make_run(tmp_path, row, 1, counts.mean_iou(), table="u", counts=_arrays(counts))
    assert "and 5 or 12 test images, " in as_text(compare_runs(read_runs([tmp_path]), "test/mIoU"), "md")


def test_evaluations_share_the_seeds_of_their_training(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    """Two seeds far apart, each better by hardly anything after post-processing: that is certain."""
    target = np.full((6, 1), 1000)
    for seed, hits in ((1, 400), (2, 700)):
        run = make_run(tmp_path, "ce", seed, hits / 1000)
        evaluation = RunFolder(run.path / "evaluations" / "crf-1")
        evaluation.record = {"evaluation": {"words": "crf:1", "postprocess": "crf:1"}}
        evaluation.summary = {"test/mIoU": hits / 1000 + 0.005}
        for folder, right in ((run, hits), (evaluation, hits + 5)):
            predicted = target - 1000 + right
            ImageCounts(np.arange(6).astype(str), predicted, predicted, target).save(folder.images_file("test"))
    assert interval(compared(tmp_path, row="ce + crf:1")) == pytest.approx((0.005, 0.005))


@pytest.mark.parametrize(
    ("case", "metric"),
    [
        ("file missing", "test/mIoU"),
        ("other images", "test/mIoU"),
        ("no images", "test/mIoU"),
        ("another evaluation", "test/mIoU"),
        ("another figure", "test/accuracy"),
        ("no validation images", "val/mIoU"),
        ("no names of classes", "test/IoU/tree"),
    ],
)
def test_no_interval(tmp_path: Path, make_run: Callable[..., Any], case: str, metric: str) -> None:
    counts = random_counts(1)
    score = counts.mean_iou()
    figures = {"test/accuracy": 0.5, "val/mIoU": score, "test/IoU/tree": counts.iou_per_class()[1]}
    make_run(tmp_path, "ce", 1, score, counts=_arrays(counts), figures=figures)
    ids = [f"x{name}" for name in counts.id] if case == "other images" else None
    tested = tuple(array[:0] for array in _arrays(counts)) if case == "no images" else _arrays(counts)
    run = make_run(tmp_path, "rmi", 1, score, counts=tested, ids=ids, figures=figures)
    if case == "file missing":
        (run.path / "test_images.npz").unlink()
    if case == "another evaluation":
        run.summary = {"test/mIoU": score + 0.001}
    row = compared(tmp_path, metric)
    assert not math.isnan(row["difference"])
    assert math.isnan(row["difference_low"])


def test_a_class_has_an_interval_too(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    for row, seed in (("ce", 1), ("rmi", 2)):
        counts = random_counts(seed)
        iou = counts.iou_per_class()[1]
        ids, figures = counts.id.tolist(), {"test/IoU/tree": iou}
        run = make_run(tmp_path, row, 1, 0.5, counts=_arrays(counts), ids=ids, figures=figures)
        np.savez(run.confusion_file, matrix=np.eye(4), class_names=["sky", "tree", "car", "bike"])
    expected = difference_interval(*([resampled_scores(random_counts(seed), class_index=1)] for seed in (1, 2)))
    assert interval(compared(tmp_path, "test/IoU/tree")) == expected


def test_images_without_the_class_have_no_interval(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    for row in ("ce", "rmi"):
        arrays = [array * [1, 0, 1, 1] for array in _arrays(random_counts(0))]
        run = make_run(tmp_path, row, 1, 0.5, counts=arrays, figures={"test/IoU/tree": float("nan")})
        np.savez(run.confusion_file, matrix=np.eye(4), class_names=["sky", "tree", "car", "bike"])
    assert math.isnan(compared(tmp_path, "test/IoU/tree")["difference_low"])
