"""The bootstrap, against a loop over images and against a case worked out by hand."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beyondpixel.experiments.compare.areas import Areas, mean_iou, read_areas
from beyondpixel.experiments.compare.bootstrap import difference_interval, resampled_scores
from beyondpixel.experiments.compare.intervals import Intervals
from beyondpixel.experiments.compare.rows import collect_rows
from beyondpixel.experiments.errors import UserError


def random_areas(seed: int, images: int = 12, classes: int = 4) -> Areas:
    """The last class is in the first image alone, so many draws have nothing of it."""
    generator = np.random.default_rng(seed)
    confusion = generator.integers(0, 50, size=(images, classes, classes))
    confusion[1:, -1, :] = 0
    confusion[1:, :, -1] = 0
    names = tuple(f"{index:02}" for index in range(images))
    return Areas(names, np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1), confusion.sum(2))


def loop_miou(areas: Areas, chosen: list[int]) -> float:
    """One image at a time, one class at a time."""
    ious = []
    for c in range(areas.truth.shape[1]):
        i = sum(int(areas.intersection[k, c]) for k in chosen)
        union = sum(int(areas.predicted[k, c]) + int(areas.truth[k, c]) - int(areas.intersection[k, c]) for k in chosen)
        if union > 0:
            ious.append(i / union)
    return sum(ious) / len(ious)


def test_every_draw_is_the_miou_of_the_images_drawn() -> None:
    """Which images a draw holds is read off scores: where image k alone has hits, IoU is k's share of the draw."""
    areas = random_areas(0)
    count = len(areas.ids)
    everywhere = np.ones((count, 1), dtype=np.int64)
    shares = []
    for image in range(count):
        hits = np.zeros((count, 1), dtype=np.int64)
        hits[image] = 1
        shares.append(resampled_scores(Areas(areas.ids, hits, everywhere, hits), resamples=40, seed=3))
    for draw, score in enumerate(resampled_scores(areas, resamples=40, seed=3)):
        times = [round(shares[image][draw] * count) for image in range(count)]
        assert sum(times) == count
        chosen = [image for image, number in enumerate(times) for _ in range(number)]
        assert score == pytest.approx(loop_miou(areas, chosen), abs=1e-12)


def test_interval_of_a_case_worked_out_by_hand() -> None:
    """Two images, one class: the first run has IoU 0 and 1, the second 1 and 1, so the difference has three values.

    Draws are {a, a}, {a, b}, {b, a}, {b, b}, each with probability 1/4, hence the difference is 1, 1/2, 1/2, 0 and
    the 2.5 % and 97.5 % quantiles are 0 and 1.
    """
    ones = np.full((2, 1), 10, dtype=np.int64)
    first = Areas(("a", "b"), np.array([[0], [10]]), np.array([[0], [10]]), ones)
    second = Areas(("a", "b"), ones, ones, ones)
    scores = [resampled_scores(areas) for areas in (first, second)]
    values, counts = np.unique(scores[1] - scores[0], return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / counts.sum() == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    assert difference_interval([scores[0]], [scores[1]]) == (0.0, 1.0)


def test_interval_against_every_possible_draw() -> None:
    """Three seeds against two on four images: all 4^4 draws give the distribution that the bootstrap samples."""
    first = [random_areas(seed, images=4) for seed in (1, 2)]
    second = [random_areas(seed, images=4) for seed in (3, 4, 5)]
    exact = [
        np.mean([loop_miou(areas, list(chosen)) for areas in second])
        - np.mean([loop_miou(areas, list(chosen)) for areas in first])
        for chosen in itertools.product(range(4), repeat=4)
    ]
    ends = difference_interval(*([resampled_scores(areas, resamples=20_000) for areas in g] for g in (first, second)))
    assert ends == pytest.approx(np.quantile(exact, [0.025, 0.975]), abs=0.004)


def test_runs_are_paired() -> None:
    """A run that is better by the same in each image has an interval far narrower than the images' own spread."""
    truth = np.full((30, 1), 1000, dtype=np.int64)
    hits = np.random.default_rng(0).integers(100, 800, size=(30, 1))
    worse, better = (Areas(tuple(map(str, range(30))), h, truth, truth) for h in (hits, hits + 10))
    scores = [resampled_scores(areas) for areas in (worse, better)]
    low, high = difference_interval([scores[0]], [scores[1]]) or (0, 1)
    assert high - low < 0.1 * np.diff(np.quantile(scores[0], [0.025, 0.975]))[0]


def test_a_class_alone_and_draws_without_it() -> None:
    areas = random_areas(7)
    scores = resampled_scores(areas, class_index=3)
    assert 0.2 < np.isnan(scores).mean() < 0.5  # (11/12)^12 = 0.35
    value = areas.intersection[0, 3] / (areas.predicted[0, 3] + areas.truth[0, 3] - areas.intersection[0, 3])
    assert np.nanmax(scores) == pytest.approx(value)
    assert np.nanmin(scores) == pytest.approx(value)


def _arrays(areas: Areas) -> tuple[Any, Any, Any]:
    return areas.intersection, areas.predicted, areas.truth


def _miou(areas: Areas) -> float:
    return float(mean_iou(*(array.sum(0) for array in _arrays(areas))))


def test_rows_get_intervals_from_their_folders(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    """Images may come in any order; the interval is that of the sorted ones."""
    runs = {row: [random_areas(10 * k + s) for s in (1, 2)] for k, row in enumerate(["ce", "rmi"])}
    for row, group in runs.items():
        for seed, areas in enumerate(group, start=1):
            order = np.random.default_rng(seed).permutation(len(areas.ids))
            shuffled = tuple(array[order] for array in _arrays(areas))
            names = [areas.ids[index] for index in order]
            make_run(tmp_path, row, seed, _miou(areas), areas=shuffled, ids=names)
    base, row = collect_rows([tmp_path], metric="test/mIoU")
    assert base.interval is None
    expected = difference_interval(*([resampled_scores(areas) for areas in group] for group in runs.values()))
    assert row.interval == expected
    assert row.interval[0] < row.difference < row.interval[1]


@pytest.mark.parametrize("case", ["file missing", "other images", "another evaluation", "another figure"])
def test_no_interval(tmp_path: Path, make_run: Callable[..., Any], case: str) -> None:
    areas = random_areas(1)
    make_run(tmp_path, "ce", 1, _miou(areas), areas=_arrays(areas), figures={"test/accuracy": 0.5})
    ids = [f"x{name}" for name in areas.ids] if case == "other images" else None
    run = make_run(tmp_path, "rmi", 1, _miou(areas), areas=_arrays(areas), ids=ids, figures={"test/accuracy": 0.6})
    if case == "file missing":
        (run.path / "test_images.npz").unlink()
    if case == "another evaluation":
        run.summary = {"test/mIoU": _miou(areas) + 0.01}
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
            tmp_path, row, 1, 0.5, areas=_arrays(areas), ids=list(areas.ids), figures={"test/IoU/tree": i / (p + t - i)}
        )
        np.savez(run.confusion_file, matrix=np.eye(4), class_names=["sky", "tree", "car", "bike"])
        runs.append([run])
    expected = difference_interval(*([resampled_scores(random_areas(seed), class_index=1)] for seed in (1, 2)))
    assert Intervals("test/IoU/tree").of_difference(*runs) == expected
    assert Intervals("test/IoU/moon").of_difference(*runs) is None


@pytest.mark.parametrize("fault", ["cut", "shapes", "names"])
def test_a_broken_file_is_named(tmp_path: Path, make_run: Callable[..., Any], fault: str) -> None:
    areas = random_areas(1)
    ids = ["same"] * len(areas.ids) if fault == "names" else None
    arrays = (areas.intersection[:, :2], *_arrays(areas)[1:]) if fault == "shapes" else _arrays(areas)
    run = make_run(tmp_path, "ce", 1, 0.5, areas=arrays, ids=ids)
    file = run.path / "test_images.npz"
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:100])
    expected = "cannot be read" if fault == "cut" else "expected n distinct ids and three arrays"
    with pytest.raises(UserError, match=f"test_images.npz.*{expected}"):
        read_areas(run, "test")
