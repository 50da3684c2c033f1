"""Intervals of compared rows, from the areas in their runs' folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beyondpixel.experiments.bootstrap import difference_interval, resampled_scores
from beyondpixel.experiments.compare.intervals import Intervals
from beyondpixel.experiments.compare.rows import collect_rows
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.image_areas import ImageAreas


def random_areas(seed: int, images: int = 12, classes: int = 4) -> ImageAreas:
    generator = np.random.default_rng(seed)
    confusion = generator.integers(0, 50, size=(images, classes, classes))
    names = np.array([f"{index:02}" for index in range(images)])
    return ImageAreas(names, np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1), confusion.sum(2))


def _arrays(areas: ImageAreas) -> tuple[Any, Any, Any]:
    return areas.intersection, areas.predicted, areas.truth


def test_rows_get_intervals_from_their_folders(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    """Images may come in any order; the interval is that of the sorted ones."""
    runs = {row: [random_areas(10 * k + s) for s in (1, 2)] for k, row in enumerate(["ce", "rmi"])}
    for row, group in runs.items():
        for seed, areas in enumerate(group, start=1):
            order = np.random.default_rng(seed).permutation(len(areas))
            shuffled = tuple(array[order] for array in _arrays(areas))
            names = [areas.id[index] for index in order]
            make_run(tmp_path, row, seed, areas.mean_iou(), areas=shuffled, ids=names)
    base, row = collect_rows([tmp_path], metric="test/mIoU")
    assert base.interval is None
    expected = difference_interval(*([resampled_scores(areas) for areas in group] for group in runs.values()))
    assert row.interval == expected
    assert row.interval[0] < row.difference < row.interval[1]


@pytest.mark.parametrize("case", ["file missing", "other images", "another evaluation", "another figure"])
def test_no_interval(tmp_path: Path, make_run: Callable[..., Any], case: str) -> None:
    areas = random_areas(1)
    make_run(tmp_path, "ce", 1, areas.mean_iou(), areas=_arrays(areas), figures={"test/accuracy": 0.5})
    ids = [f"x{name}" for name in areas.id] if case == "other images" else None
    run = make_run(tmp_path, "rmi", 1, areas.mean_iou(), areas=_arrays(areas), ids=ids, figures={"test/accuracy": 0.6})
    if case == "file missing":
        (run.path / "test_images.npz").unlink()
    if case == "another evaluation":
        run.summary = {"test/mIoU": areas.mean_iou() + 0.01}
    metric = "test/accuracy" if case == "another figure" else "test/mIoU"
    rows = collect_rows([tmp_path], metric=metric)
    assert rows[1].difference is not None
    assert rows[1].interval is None


def test_a_class_has_an_interval_too(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    runs = []
    for row, seed in (("ce", 1), ("rmi", 2)):
        areas = random_areas(seed)
        i, p, t = (array.sum(0)[1] for array in _arrays(areas))
        run = make_run(
            tmp_path,
            row,
            1,
            0.5,
            areas=_arrays(areas),
            ids=areas.id.tolist(),
            figures={"test/IoU/tree": i / (p + t - i)},
        )
        np.savez(run.confusion_file, matrix=np.eye(4), class_names=["sky", "tree", "car", "bike"])
        runs.append([run])
    expected = difference_interval(*([resampled_scores(random_areas(seed), class_index=1)] for seed in (1, 2)))
    assert Intervals("test/IoU/tree").of_difference(*runs) == expected
    assert Intervals("test/IoU/moon").of_difference(*runs) is None


def test_images_without_the_class_have_no_interval(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    arrays = [array * [1, 0, 1, 1] for array in _arrays(random_areas(0))]
    run = make_run(tmp_path, "ce", 1, 0.5, areas=arrays, figures={"test/IoU/tree": float("nan")})
    np.savez(run.confusion_file, matrix=np.eye(4), class_names=["sky", "tree", "car", "bike"])
    assert Intervals("test/IoU/tree").of_difference([run], [run]) is None


def test_a_broken_file_is_named(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    areas = random_areas(1)
    for row in ("ce", "rmi"):
        run = make_run(tmp_path, row, 1, areas.mean_iou(), areas=_arrays(areas))
    file = run.path / "test_images.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"rmi/seed1/test_images.npz cannot be read .*test the run again to renew it"):
        collect_rows([tmp_path], metric="test/mIoU")
