"""Bootstrap over images against plain loops, and against what is known of binomial proportions."""

import math
from pathlib import Path

import numpy as np
import pytest

from beyondpixel.experiments import bootstrap
from beyondpixel.experiments.bootstrap import bootstrap_difference, bootstrap_miou
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.image_areas import ImageAreas


def _areas(seed: int, images: int = 12, classes: int = 4) -> ImageAreas:
    """The last class is in one image only, so some draws are without it."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, 50, size=(images, classes))
    truth[1:, -1] = 0
    intersection = rng.integers(0, truth + 1)
    predicted = intersection + rng.integers(0, 9, size=truth.shape) * (truth > 0)
    return ImageAreas(np.array([f"image{index}" for index in range(images)]), intersection, predicted, truth)


def _looped_miou(areas: ImageAreas, drawn: list[int]) -> float:
    ious = []
    for index in range(areas.num_classes):
        hits = sum(int(areas.intersection[image, index]) for image in drawn)
        both = sum(int(areas.predicted[image, index] + areas.truth[image, index]) for image in drawn)
        if both:
            ious.append(hits / (both - hits))
    return sum(ious) / len(ious)


def test_interval_equals_a_loop_over_draws() -> None:
    areas = _areas(0)
    draws = np.random.default_rng(7).integers(12, size=(300, 12)).tolist()
    scores = sorted(_looped_miou(areas, drawn) for drawn in draws)
    low, high = bootstrap_miou(areas, resamples=300, seed=7, level=0.9)
    # linear interpolation between order statistics, at ranks 0.05·299 = 14.95 and 0.95·299 = 284.05
    assert low == pytest.approx(scores[14] + 0.95 * (scores[15] - scores[14]), rel=1e-12)
    assert high == pytest.approx(scores[284] + 0.05 * (scores[285] - scores[284]), rel=1e-12)


def test_difference_uses_the_same_draw_for_both() -> None:
    areas, baseline = _areas(0), _areas(1)
    draws = np.random.default_rng(3).integers(12, size=(101, 12)).tolist()
    paired = sorted(_looped_miou(areas, drawn) - _looped_miou(baseline, drawn) for drawn in draws)
    difference, low, high = bootstrap_difference(areas, baseline, resamples=101, seed=3, level=0.9)
    assert difference == pytest.approx(_looped_miou(areas, list(range(12))) - _looped_miou(baseline, list(range(12))))
    assert (low, high) == pytest.approx((paired[5], paired[95]), rel=1e-12)


def test_difference_pairs_images_by_their_ids() -> None:
    areas, baseline = _areas(0), _areas(1)
    shuffled = baseline.in_order_of(list(reversed(baseline.id.tolist())))
    assert shuffled.truth[-1].tolist() == baseline.truth[0].tolist()
    assert bootstrap_difference(areas, shuffled) == bootstrap_difference(areas, baseline)


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap_miou(_areas(0), resamples=50)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 12 * 7)
    assert bootstrap_miou(_areas(0), resamples=50) == whole


def test_interval_of_a_proportion_is_the_binomial_one() -> None:
    """Images of one pixel each, right or wrong: IoU = k/(2n − k) for k hits, k ~ B(n, 0.7)."""
    hits = (np.arange(400) < 280).astype(np.int64)[:, None]
    areas = ImageAreas(np.arange(400).astype(str), hits, np.ones_like(hits), np.ones_like(hits))
    spread = 1.96 * math.sqrt(400 * 0.7 * 0.3)
    expected = [(280 + sign * spread) / (800 - 280 - sign * spread) for sign in (-1, 1)]
    # two thousand draws know the ends to a few thousandths
    assert bootstrap_miou(areas) == pytest.approx(expected, abs=0.006)


def test_images_without_truth() -> None:
    nothing = np.zeros((2, 3), dtype=np.int64)
    low, high = bootstrap_miou(ImageAreas(np.array(["a", "b"]), nothing, nothing, nothing))
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"resamples": 0}, "resamples and the number of images must be 1 or more, got 0"), ({"level": 95}, "got 95")],
)
def test_bad_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_miou(_areas(0), **arguments)  # type: ignore[arg-type]


def test_other_images_or_classes_are_refused() -> None:
    with pytest.raises(UserError, match=r"on the same images: 1 are in one of them only, e.g. image11"):
        bootstrap_difference(_areas(0), _areas(1, images=11))
    with pytest.raises(UserError, match=r"on the same classes, got 4 and 5"):
        bootstrap_difference(_areas(0), _areas(1, classes=5))


class TestFile:
    def test_comes_back_as_it_was(self, tmp_path: Path) -> None:
        areas = _areas(0)
        with_boundaries = ImageAreas(
            areas.id, areas.intersection, areas.predicted, areas.truth, areas.truth, areas.union
        )
        for written in (areas, with_boundaries):
            written.save(tmp_path / "run" / "test_images.npz")
            read = ImageAreas.load(tmp_path / "run" / "test_images.npz")
            for name in ("id", "intersection", "predicted", "truth", "boundary_intersection", "boundary_union"):
                np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert [file.name for file in (tmp_path / "run").iterdir()] == ["test_images.npz"]

    def test_missing_or_foreign(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"test_images.npz is not there: .* test the run again"):
            ImageAreas.load(tmp_path / "test_images.npz")
        np.savez(tmp_path / "other.npz", id=np.array(["a"]), truth=np.ones((1, 2)))
        with pytest.raises(UserError, match=r"other.npz lacks intersection, predicted"):
            ImageAreas.load(tmp_path / "other.npz")

    def test_shapes_and_ids_must_fit(self) -> None:
        areas = np.ones((2, 3), dtype=np.int64)
        with pytest.raises(ValueError, match=r"truth must have the shape \(images, classes\) = \(2, 3\), got \(2, 2\)"):
            ImageAreas(np.array(["a", "b"]), areas, areas, areas[:, :2])
        with pytest.raises(ValueError, match="id must be one-dimensional with distinct entries"):
            ImageAreas(np.array(["a", "a"]), areas, areas, areas)
