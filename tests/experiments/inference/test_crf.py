"""The CRF against mean-field inference written out over all pairs of pixels, in float64."""

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from beyondpixel.experiments.inference.crf import LEAST_PROBABILITY, DenseCRF, import_package
from beyondpixel.experiments.inference.pool import RefinementPool, started_ahead

pytest.importorskip("pydensecrf.densecrf", reason="the extra crf is not installed")

Array = NDArray[Any]


def gaussian(features: Array) -> Array:
    """exp(-|f_i - f_j|^2 / 2) between all pixels, a pixel with itself included as in the published code, normalised
    symmetrically: D^-1/2 K D^-1/2 with the row sums D."""
    squares = ((features[:, None] - features[None]) ** 2).sum(-1)
    kernel = np.exp(-squares / 2)
    scale = 1 / np.sqrt(kernel.sum(1))
    return scale[:, None] * kernel * scale


def mean_field(image: Array, probs: Array, crf: DenseCRF) -> Array:
    """Krähenbühl and Koltun, Algorithm 1, with Potts compatibility: Q <- softmax(log p + sum_m w_m K_m Q)."""
    classes, height, width = probs.shape
    y, x = (axis.reshape(-1).astype(np.float64) for axis in np.mgrid[:height, :width])
    colors = image.reshape(-1, 3).astype(np.float64) / crf.color_std
    near = gaussian(np.stack([x, y], 1) / crf.smooth_std)
    alike = gaussian(np.column_stack([x / crf.color_position_std, y / crf.color_position_std, colors]))
    log_unary = np.log(np.clip(probs.astype(np.float64), LEAST_PROBABILITY, 1)).reshape(classes, -1)

    def softmax(energies: Array) -> Array:
        weights = np.exp(energies - energies.max(0))
        return weights / weights.sum(0)

    q = softmax(log_unary)
    for _ in range(crf.steps):
        q = softmax(log_unary + q @ (crf.smooth_weight * near + crf.color_weight * alike))
    return q.reshape(probs.shape)


def scene(seed: int, *, height: int = 20, width: int = 26, classes: int = 4) -> tuple[Array, Array]:
    """Coloured patches with noise, and unsure probabilities that follow them."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((height, width), int)
    for label in range(1, classes):
        top, left = rng.integers(0, height - 6), rng.integers(0, width - 8)
        truth[top : top + 9, left : left + 11] = label
    colors = rng.integers(30, 220, (classes, 3))
    image = (colors[truth] + rng.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8)
    logits = rng.normal(0, 1.2, (classes, height, width)) + 1.5 * (np.arange(classes)[:, None, None] == truth)
    probs = np.exp(logits) / np.exp(logits).sum(0)
    return image, probs.astype(np.float32)


# weights at which ten steps have not settled on 0 and 1, so that each of them and each setting shows
GENTLE = {"smooth_weight": 0.7, "color_weight": 1.2, "color_position_std": 8.0, "smooth_std": 1.5, "color_std": 20.0}
OTHER = {"smooth_weight": 1.4, "color_weight": 0.6, "color_position_std": 4.0, "smooth_std": 3.0, "color_std": 40.0}


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_like_mean_field_over_all_pairs(steps: int) -> None:
    """The lattice approximates the Gaussians. Measured: on average 0.0009 (1 step) to 0.0014 (10) off in probability,
    at most 0.021, where the CRF itself changes probabilities by 0.05 to 0.08; a wrong setting is 2.7 to 34 times that
    far off."""
    crf = DenseCRF(steps=steps, **GENTLE)
    for seed in range(2):
        image, probs = scene(seed)
        refined = crf(image, probs)
        error = np.abs(refined - mean_field(image, probs, crf))
        assert error.mean() < 0.0016
        assert error.max() < 0.025
        for name, value in OTHER.items():
            wrong = mean_field(image, probs, dataclasses.replace(crf, **{name: value}))
            assert np.abs(refined - wrong).mean() > 2 * error.mean(), name
        if steps < 5:
            wrong = mean_field(image, probs, dataclasses.replace(crf, steps=steps + 1))
            assert np.abs(refined - wrong).mean() > 2 * error.mean()


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_the_papers_settings_give_the_labels_of_the_exact_ones(steps: int) -> None:
    """Measured: no label differs, and probabilities by 0.0016 on average at 1 step, 0.00012 at 5 and 10."""
    crf = DenseCRF(steps=steps)
    assert [value for name, value in dataclasses.asdict(crf).items() if name != "steps"] == [3, 3, 30, 13, 10]
    for seed in range(3):
        image, probs = scene(seed)
        expected, refined = mean_field(image, probs, crf), crf(image, probs)
        assert (refined.argmax(0) == expected.argmax(0)).all()
        assert np.abs(refined - expected).mean() < 0.002


def test_probabilities_sum_to_one_and_impossible_classes_stay_finite() -> None:
    image, probs = scene(0)
    hard = (probs == probs.max(0)).astype(np.float32)  # zeros, whose logarithm is clipped at 1e-5
    refined = DenseCRF(steps=5)(image, hard)
    assert refined.dtype == np.float32
    assert np.isfinite(refined).all()
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)


def test_uniform_stays_uniform_and_classes_have_no_order() -> None:
    image, probs = scene(1)
    crf = DenseCRF(steps=3, **GENTLE)
    uniform = np.full((4, *image.shape[:2]), 0.25, np.float32)
    np.testing.assert_allclose(crf(image, uniform), 0.25, atol=1e-6)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(crf(image, probs[order]), crf(image, probs)[order], atol=1e-5)


def test_one_lone_pixel_gives_way_to_its_equals() -> None:
    image = np.full((15, 15, 3), 90, np.uint8)
    probs = np.zeros((2, 15, 15), np.float32) + np.array([0.8, 0.2], np.float32)[:, None, None]
    probs[:, 7, 7] = 0.3, 0.7
    assert probs.argmax(0)[7, 7] == 1
    assert (DenseCRF(steps=5)(image, probs).argmax(0) == 0).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"image must be uint8 \(4, 5, 3\), as probs are .*, got float32"),
        (np.zeros((5, 4, 3), np.uint8), r"image must be uint8 \(4, 5, 3\), as probs are .*, got uint8 \(5, 4, 3\)"),
    ],
)
def test_an_image_that_does_not_fit(image: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseCRF()(image, np.full((2, 4, 5), 0.5, np.float32))


def test_steps_below_one() -> None:
    with pytest.raises(ValueError, match="steps of the CRF must be 1 or more, got 0; without a CRF leave it out"):
        DenseCRF(steps=0)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    import_package.cache_clear()
    with pytest.raises(
        ModuleNotFoundError, match=r"pydensecrf2, which is not installed: pip install 'beyondpixel\[crf"
    ):
        DenseCRF()(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 2), 0.5))
    import_package.cache_clear()


def test_processes_give_what_one_gives_and_say_what_it_took() -> None:
    crf = DenseCRF(steps=2)
    scenes = [scene(seed) for seed in range(4)]
    with RefinementPool(crf, workers=2) as pool:
        refined = [job.result() for job in [pool.submit(*one) for one in scenes]]
    for one, (image, probs) in zip(refined, scenes, strict=True):
        np.testing.assert_array_equal(one.probs, crf(image, probs))
        assert one.seconds > 0


def test_ahead_keeps_the_order_and_starts_no_more_than_asked() -> None:
    begun: list[int] = []
    results = started_ahead(range(6), lambda item: begun.append(item) or -item, ahead=2)
    seen = [(next(results), len(begun)) for _ in range(6)]
    assert seen == [(0, 3), (-1, 4), (-2, 5), (-3, 6), (-4, 6), (-5, 6)]
    assert list(results) == []


def test_the_processes_do_not_wait_for_torch() -> None:
    code = "import sys, beyondpixel.experiments.inference.pool; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "False\n"
