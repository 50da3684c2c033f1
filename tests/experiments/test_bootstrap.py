"""The two-level bootstrap, against loops, SciPy, cases worked out by hand, every possible draw, and known variances."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from beyondpixel.experiments import bootstrap
from beyondpixel.experiments.bootstrap import difference_interval, mean_interval, mean_scores, resampled_scores
from beyondpixel.experiments.image_counts import ImageCounts


def random_counts(seed: int, images: int = 12, classes: int = 4) -> ImageCounts:
    """The last class is in the first image alone, so many draws have nothing of it."""
    generator = np.random.default_rng(seed)
    confusion = generator.integers(0, 50, size=(images, classes, classes))
    confusion[1:, -1, :] = 0
    confusion[1:, :, -1] = 0
    names = np.array([f"{index:02}" for index in range(images)])
    return ImageCounts(names, np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1), confusion.sum(2))


def in_order(counts: ImageCounts, order: list[int]) -> ImageCounts:
    return ImageCounts(counts.id[order], counts.intersection[order], counts.predicted[order], counts.target[order])


def loop_miou(counts: ImageCounts, chosen: list[int]) -> float:
    """One image at a time, one class at a time."""
    ious = []
    for c in range(counts.target.shape[1]):
        i = sum(int(counts.intersection[k, c]) for k in chosen)
        union = sum(
            int(counts.predicted[k, c]) + int(counts.target[k, c]) - int(counts.intersection[k, c]) for k in chosen
        )
        if union > 0:
            ious.append(i / union)
    return sum(ious) / len(ious)


def draws(seed: int, count: int = 12, images: int = 12) -> list[list[int]]:
    return np.random.default_rng(seed).integers(images, size=(count, images)).tolist()


def test_scores_are_those_of_the_images_drawn() -> None:
    counts = random_counts(0)
    expected = [loop_miou(counts, drawn) for drawn in draws(3, 40)]
    np.testing.assert_allclose(resampled_scores(counts, resamples=40, seed=3), expected, rtol=1e-12)
    assert counts.mean_iou() == pytest.approx(loop_miou(counts, list(range(12))), rel=1e-12)


def test_every_draw_is_the_miou_of_as_many_images() -> None:
    """Which images a draw holds is read off scores: where image k alone has hits, IoU is k's share of the draw."""
    counts = random_counts(0)
    count = len(counts)
    everywhere = np.ones((count, 1), dtype=np.int64)
    shares = []
    for image in range(count):
        hits = np.zeros((count, 1), dtype=np.int64)
        hits[image] = 1
        shares.append(resampled_scores(ImageCounts(counts.id, hits, everywhere, hits), resamples=40, seed=3))
    for draw, score in enumerate(resampled_scores(counts, resamples=40, seed=3)):
        times = [round(shares[image][draw] * count) for image in range(count)]
        assert sum(times) == count
        chosen = [image for image, number in enumerate(times) for _ in range(number)]
        assert score == pytest.approx(loop_miou(counts, chosen), abs=1e-12)


def test_ends_are_quantiles_of_the_draws() -> None:
    counts = random_counts(0)
    scores = sorted(loop_miou(counts, drawn) for drawn in draws(0, 5000))
    # linear interpolation between order statistics, at ranks 0.025 * 4999 = 124.975 and 0.975 * 4999 = 4874.025
    low = scores[124] + 0.975 * (scores[125] - scores[124])
    high = scores[4874] + 0.025 * (scores[4875] - scores[4874])
    assert mean_interval([resampled_scores(counts)]) == pytest.approx((low, high), rel=1e-12)


def test_the_order_of_images_changes_nothing() -> None:
    counts = random_counts(0)
    order = np.random.default_rng(1).permutation(12).tolist()
    np.testing.assert_array_equal(resampled_scores(in_order(counts, order)), resampled_scores(counts))


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resampled_scores(random_counts(0), resamples=50)
    monkeypatch.setattr(bootstrap, "_DRAWN_AT_ONCE", 12 * 7)
    np.testing.assert_array_equal(resampled_scores(random_counts(0), resamples=50), whole)


def test_interval_of_a_proportion_is_the_binomial_one() -> None:
    """Images of one pixel each, right or wrong: IoU = k/(2n − k) for k hits, k ~ B(n, 0.7)."""
    hits = (np.arange(400) < 280).astype(np.int64)[:, None]
    counts = ImageCounts(np.arange(400).astype(str), hits, np.ones_like(hits), np.ones_like(hits))
    spread = 1.96 * math.sqrt(400 * 0.7 * 0.3)
    expected = [(280 + sign * spread) / (800 - 280 - sign * spread) for sign in (-1, 1)]
    # five thousand draws know the ends to a few thousandths
    assert mean_interval([resampled_scores(counts)]) == pytest.approx(expected, abs=0.006)


def test_difference_of_a_case_worked_out_by_hand() -> None:
    """Two images, one class: the first run has IoU 0 and 1, the second 1 and 1, so the difference has three values.

    Draws are {a, a}, {a, b}, {b, a}, {b, b}, each with probability 1/4, hence the difference is 1, 1/2, 1/2, 0 and
    the 2.5 % and 97.5 % quantiles are 0 and 1.
    """
    ids = np.array(["a", "b"])
    ones = np.full((2, 1), 10, dtype=np.int64)
    first = ImageCounts(ids, np.array([[0], [10]]), np.array([[0], [10]]), ones)
    second = ImageCounts(ids, ones, ones, ones)
    scores = [resampled_scores(counts) for counts in (first, second)]
    values, counts = np.unique(scores[1] - scores[0], return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / counts.sum() == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    assert difference_interval([scores[0]], [scores[1]]) == (0.0, 1.0)


def test_difference_against_every_possible_draw() -> None:
    """Three seeds against two on three images: two of three seeds, one of two, and 3^3 draws of images."""
    first = [random_counts(seed, images=3) for seed in (1, 2)]
    second = [random_counts(seed, images=3) for seed in (3, 4, 5)]
    exact = [
        np.mean([loop_miou(second[seed], list(images)) for seed in seeds]) - loop_miou(first[other], list(images))
        for images in itertools.product(range(3), repeat=3)
        for seeds in itertools.product(range(3), repeat=2)
        for other in range(2)
    ]
    ends = difference_interval(*([resampled_scores(c, resamples=40_000) for c in group] for group in (first, second)))
    assert ends == pytest.approx(np.quantile(exact, [0.025, 0.975]), abs=0.006)


def test_one_row_against_every_possible_draw() -> None:
    runs = [random_counts(seed, images=3) for seed in (1, 2, 3)]
    exact = [
        np.mean([loop_miou(runs[seed], list(images)) for seed in seeds])
        for images in itertools.product(range(3), repeat=3)
        for seeds in itertools.product(range(3), repeat=2)
    ]
    ends = mean_interval([resampled_scores(counts, resamples=40_000) for counts in runs])
    assert ends == pytest.approx(np.quantile(exact, [0.025, 0.975]), abs=0.006)


def test_images_alone_are_drawn_as_scipy_draws_them() -> None:
    counts = random_counts(0)
    order = np.arange(12)

    def miou(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.apply_along_axis(lambda one: loop_miou(counts, one.tolist()), axis, drawn)

    theirs = scipy.stats.bootstrap(
        (order,), miou, n_resamples=300, batch=None, method="percentile", rng=np.random.default_rng(5)
    )
    np.testing.assert_allclose(
        np.sort(resampled_scores(counts, resamples=300, seed=5)), np.sort(theirs.bootstrap_distribution), rtol=1e-12
    )
    ends = mean_interval([resampled_scores(counts, resamples=300, seed=5)])
    assert ends == pytest.approx(tuple(theirs.confidence_interval), rel=1e-12)


def test_variance_is_that_of_seeds_and_images_together() -> None:
    """IoU linear in the hits: the variance of the mean is s²/S over seeds plus σ²/n over images, nearly normal."""
    seeds, images = 10, 400
    generator = np.random.default_rng(3)
    of_image = generator.integers(300, 600, size=(images, 1))
    of_seed = generator.integers(-40, 41, size=seeds)
    union = np.full((images, 1), 1000)
    runs = [
        resampled_scores(ImageCounts(np.arange(images).astype(str), of_image + seed, of_image + seed, union))
        for seed in of_seed
    ]  # predicted = intersection and target = 1000 make the union 1000
    mean = (of_image.mean() + of_seed.mean()) / 1000
    error = math.sqrt(of_seed.var(ddof=1) / seeds + of_image.var() / images) / 1000
    low, high = mean_interval(runs)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)


def test_two_seeds_that_differ_make_the_interval_wide() -> None:
    """Images are alike, one seed of each row is 2.6 points better: the difference is ±2.6 or 0 as seeds fall."""
    union = np.full((5, 1), 1000)
    good, bad = (
        resampled_scores(ImageCounts(np.arange(5).astype(str), union - 1000 + hits, union - 1000 + hits, union))
        for hits in (526, 500)
    )
    assert difference_interval([good, bad], [good, bad]) == pytest.approx((-0.026, 0.026))
    assert difference_interval([bad], [good]) == pytest.approx((0.026, 0.026))  # one training each: nothing to draw
    first, second = mean_scores([[good, bad], [good, bad]])
    assert set((first - second).round(9)) == {-0.026, 0.0, 0.026}  # seeds of each row by themselves


def test_evaluations_of_the_same_trainings_share_their_seeds() -> None:
    runs = [[np.full(50, score) for score in row] for row in ((0.5, 0.6), (0.51, 0.61))]
    assert difference_interval(runs[0], runs[1], same_trainings=True) == pytest.approx((0.01, 0.01))
    assert difference_interval(runs[0], runs[1]) == pytest.approx((-0.09, 0.11))


def test_runs_are_paired() -> None:
    """A run that is better by the same in each image has an interval far narrower than the images' own spread."""
    target = np.full((30, 1), 1000, dtype=np.int64)
    hits = np.random.default_rng(0).integers(100, 800, size=(30, 1))
    worse, better = (ImageCounts(np.arange(30).astype(str), h, target, target) for h in (hits, hits + 10))
    better = in_order(better, list(reversed(range(30))))  # paired by their ids, not by their places
    scores = [resampled_scores(counts) for counts in (worse, better)]
    low, high = difference_interval([scores[0]], [scores[1]])
    assert high - low < 0.1 * np.diff(np.quantile(scores[0], [0.025, 0.975]))[0]


def test_a_class_alone_and_draws_without_it() -> None:
    counts = random_counts(7)
    scores = resampled_scores(counts, class_index=3)
    assert 0.2 < np.isnan(scores).mean() < 0.5  # (11/12)^12 = 0.35
    value = counts.intersection[0, 3] / (counts.predicted[0, 3] + counts.target[0, 3] - counts.intersection[0, 3])
    assert np.nanmax(scores) == pytest.approx(value)
    assert np.nanmin(scores) == pytest.approx(value)
    assert difference_interval([scores * 0], [scores]) == pytest.approx((value, value))


def test_images_without_truth() -> None:
    nothing = np.zeros((2, 3), dtype=np.int64)
    counts = ImageCounts(np.array(["a", "b"]), nothing, nothing, nothing)
    scores = resampled_scores(counts)
    assert np.isnan(
        [*mean_interval([resampled_scores(counts)]), *difference_interval([scores], [scores]), counts.mean_iou()]
    ).all()
    assert np.isnan(counts.iou_per_class()).all()


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="resamples and the number of images must be 1 or more, got 0 and 12"):
        resampled_scores(random_counts(0), resamples=0)
    none = np.zeros((0, 3), dtype=np.int64)
    with pytest.raises(ValueError, match="must be 1 or more, got 5000 and 0"):
        resampled_scores(ImageCounts(np.array([], dtype=str), none, none, none))
