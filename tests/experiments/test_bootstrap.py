"""The bootstrap, against loops over images, a case worked out by hand, every possible draw, and known proportions."""

import itertools
import math

import numpy as np
import pytest

from beyondpixel.experiments import bootstrap
from beyondpixel.experiments.bootstrap import bootstrap_miou, difference_interval, resampled_scores
from beyondpixel.experiments.image_areas import ImageAreas


def random_areas(seed: int, images: int = 12, classes: int = 4) -> ImageAreas:
    """The last class is in the first image alone, so many draws have nothing of it."""
    generator = np.random.default_rng(seed)
    confusion = generator.integers(0, 50, size=(images, classes, classes))
    confusion[1:, -1, :] = 0
    confusion[1:, :, -1] = 0
    names = np.array([f"{index:02}" for index in range(images)])
    return ImageAreas(names, np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1), confusion.sum(2))


def in_order(areas: ImageAreas, order: list[int]) -> ImageAreas:
    return ImageAreas(areas.id[order], areas.intersection[order], areas.predicted[order], areas.truth[order])


def loop_miou(areas: ImageAreas, chosen: list[int]) -> float:
    """One image at a time, one class at a time."""
    ious = []
    for c in range(areas.truth.shape[1]):
        i = sum(int(areas.intersection[k, c]) for k in chosen)
        union = sum(int(areas.predicted[k, c]) + int(areas.truth[k, c]) - int(areas.intersection[k, c]) for k in chosen)
        if union > 0:
            ious.append(i / union)
    return sum(ious) / len(ious)


def draws(seed: int, count: int = 12, images: int = 12) -> list[list[int]]:
    return np.random.default_rng(seed).integers(images, size=(count, images)).tolist()


def test_scores_are_those_of_the_images_drawn() -> None:
    areas = random_areas(0)
    expected = [loop_miou(areas, drawn) for drawn in draws(3, 40)]
    np.testing.assert_allclose(resampled_scores(areas, resamples=40, seed=3), expected, rtol=1e-12)
    assert areas.mean_iou() == pytest.approx(loop_miou(areas, list(range(12))), rel=1e-12)


def test_every_draw_is_the_miou_of_as_many_images() -> None:
    """Which images a draw holds is read off scores: where image k alone has hits, IoU is k's share of the draw."""
    areas = random_areas(0)
    count = len(areas)
    everywhere = np.ones((count, 1), dtype=np.int64)
    shares = []
    for image in range(count):
        hits = np.zeros((count, 1), dtype=np.int64)
        hits[image] = 1
        shares.append(resampled_scores(ImageAreas(areas.id, hits, everywhere, hits), resamples=40, seed=3))
    for draw, score in enumerate(resampled_scores(areas, resamples=40, seed=3)):
        times = [round(shares[image][draw] * count) for image in range(count)]
        assert sum(times) == count
        chosen = [image for image, number in enumerate(times) for _ in range(number)]
        assert score == pytest.approx(loop_miou(areas, chosen), abs=1e-12)


def test_ends_are_quantiles_of_the_draws() -> None:
    areas = random_areas(0)
    scores = sorted(loop_miou(areas, drawn) for drawn in draws(0, 5000))
    # linear interpolation between order statistics, at ranks 0.025 * 4999 = 124.975 and 0.975 * 4999 = 4874.025
    low = scores[124] + 0.975 * (scores[125] - scores[124])
    high = scores[4874] + 0.025 * (scores[4875] - scores[4874])
    assert bootstrap_miou(areas) == pytest.approx((low, high), rel=1e-12)


def test_the_order_of_images_changes_nothing() -> None:
    areas = random_areas(0)
    order = np.random.default_rng(1).permutation(12).tolist()
    np.testing.assert_array_equal(resampled_scores(in_order(areas, order)), resampled_scores(areas))


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resampled_scores(random_areas(0), resamples=50)
    monkeypatch.setattr(bootstrap, "_DRAWN_AT_ONCE", 12 * 7)
    np.testing.assert_array_equal(resampled_scores(random_areas(0), resamples=50), whole)


def test_interval_of_a_proportion_is_the_binomial_one() -> None:
    """Images of one pixel each, right or wrong: IoU = k/(2n − k) for k hits, k ~ B(n, 0.7)."""
    hits = (np.arange(400) < 280).astype(np.int64)[:, None]
    areas = ImageAreas(np.arange(400).astype(str), hits, np.ones_like(hits), np.ones_like(hits))
    spread = 1.96 * math.sqrt(400 * 0.7 * 0.3)
    expected = [(280 + sign * spread) / (800 - 280 - sign * spread) for sign in (-1, 1)]
    # five thousand draws know the ends to a few thousandths
    assert bootstrap_miou(areas) == pytest.approx(expected, abs=0.006)


def test_difference_of_a_case_worked_out_by_hand() -> None:
    """Two images, one class: the first run has IoU 0 and 1, the second 1 and 1, so the difference has three values.

    Draws are {a, a}, {a, b}, {b, a}, {b, b}, each with probability 1/4, hence the difference is 1, 1/2, 1/2, 0 and
    the 2.5 % and 97.5 % quantiles are 0 and 1.
    """
    ids = np.array(["a", "b"])
    ones = np.full((2, 1), 10, dtype=np.int64)
    first = ImageAreas(ids, np.array([[0], [10]]), np.array([[0], [10]]), ones)
    second = ImageAreas(ids, ones, ones, ones)
    scores = [resampled_scores(areas) for areas in (first, second)]
    values, counts = np.unique(scores[1] - scores[0], return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / counts.sum() == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    assert difference_interval([scores[0]], [scores[1]]) == (0.0, 1.0)


def test_difference_against_every_possible_draw() -> None:
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
    worse, better = (ImageAreas(np.arange(30).astype(str), h, truth, truth) for h in (hits, hits + 10))
    better = in_order(better, list(reversed(range(30))))  # paired by their ids, not by their places
    scores = [resampled_scores(areas) for areas in (worse, better)]
    low, high = difference_interval([scores[0]], [scores[1]])
    assert high - low < 0.1 * np.diff(np.quantile(scores[0], [0.025, 0.975]))[0]


def test_a_class_alone_and_draws_without_it() -> None:
    areas = random_areas(7)
    scores = resampled_scores(areas, class_index=3)
    assert 0.2 < np.isnan(scores).mean() < 0.5  # (11/12)^12 = 0.35
    value = areas.intersection[0, 3] / (areas.predicted[0, 3] + areas.truth[0, 3] - areas.intersection[0, 3])
    assert np.nanmax(scores) == pytest.approx(value)
    assert np.nanmin(scores) == pytest.approx(value)
    assert difference_interval([scores * 0], [scores]) == pytest.approx((value, value))


def test_images_without_truth() -> None:
    nothing = np.zeros((2, 3), dtype=np.int64)
    areas = ImageAreas(np.array(["a", "b"]), nothing, nothing, nothing)
    scores = resampled_scores(areas)
    assert np.isnan([*bootstrap_miou(areas), *difference_interval([scores], [scores]), areas.mean_iou()]).all()
    assert np.isnan(areas.iou_per_class()).all()


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="resamples and the number of images must be 1 or more, got 0 and 12"):
        resampled_scores(random_areas(0), resamples=0)
    none = np.zeros((0, 3), dtype=np.int64)
    with pytest.raises(ValueError, match="must be 1 or more, got 5000 and 0"):
        bootstrap_miou(ImageAreas(np.array([], dtype=str), none, none, none))
