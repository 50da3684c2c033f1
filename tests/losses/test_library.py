"""Dice, Jaccard, Lovász, focal and Tversky loss, above all on void pixels, against float64 loops over valid ones."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from beyondpixel.losses import DiceLoss, FocalLoss, JaccardLoss, LovaszLoss, TverskyLoss, build_loss

Batch = Callable[..., tuple[Tensor, Tensor]]
Array = NDArray[np.float64]
NAMES = ["dice", "jaccard", "tversky", "lovasz", "focal"]
ARGUMENTS: dict[str, dict[str, Any]] = {"tversky": {"alpha": 0.3, "beta": 0.7}, "focal": {"gamma": 1.5, "alpha": 0.25}}


def overlap(probs: Array, labels: Array, valid: Array, false_positive: float, false_negative: float) -> float:
    """Mean over classes of 1 - TP / (TP + a FP + b FN), soft counts over the valid pixels of the batch."""
    losses = []
    for c in range(probs.shape[1]):
        tp = fp = fn = 0.0
        for n, row, column in np.argwhere(valid):
            p, y = probs[n, c, row, column], labels[n, c, row, column]
            tp, fp, fn = tp + p * y, fp + p * (1 - y), fn + (1 - p) * y
        losses.append(1 - tp / (tp + false_positive * fp + false_negative * fn) if tp + fn > 0 else 0.0)
    return sum(losses) / len(losses)


def lovasz(probs: Array, labels: Array, valid: Array) -> float:
    """Eq. 8 of Berman et al.: errors from the largest on, each times what it adds to the Jaccard loss of the set."""
    losses = []
    for c in range(probs.shape[1]):
        pixels = [(abs(labels[n, c, i, j] - probs[n, c, i, j]), labels[n, c, i, j]) for n, i, j in np.argwhere(valid)]
        total = sum(y for _, y in pixels)
        if total == 0:
            continue
        value, before, misses, extra = 0.0, 0.0, 0, 0
        for error, y in sorted(pixels, reverse=True):
            misses, extra = misses + (y == 1), extra + (y == 0)
            jaccard = 1 - (total - misses) / (total + extra)
            value, before = value + error * (jaccard - before), jaccard
        losses.append(value)
    return sum(losses) / len(losses)


def focal(logits: Array, labels: Array, valid: Array, gamma: float, alpha: float) -> float:
    total, count = 0.0, 0
    for n, i, j in np.argwhere(valid):
        for c in range(logits.shape[1]):
            p = 1 / (1 + math.exp(-logits[n, c, i, j]))
            right, weight = (p, alpha) if labels[n, c, i, j] else (1 - p, 1 - alpha)
            total, count = total - weight * (1 - right) ** gamma * math.log(right), count + 1
    return total / count


def by_hand(name: str, logits: Tensor, labels: Tensor, valid: Tensor, *, sigmoid: bool = False) -> float:
    probs = (logits.sigmoid() if sigmoid else logits.softmax(1)).numpy()
    y, v = labels.numpy().astype(float), valid.numpy()
    if name == "focal":
        return focal(logits.numpy(), y, v, **ARGUMENTS["focal"])
    if name == "lovasz":
        return lovasz(probs, y, v)
    weights = {"dice": (0.5, 0.5), "jaccard": (1.0, 1.0), "tversky": (0.3, 0.7)}[name]
    return overlap(probs, y, v, *weights)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    return (labels[:, None] == torch.arange(num_classes)[:, None, None]).long()


@pytest.mark.parametrize("name", NAMES)
def test_void_pixels_are_left_out_as_by_hand(batch: Batch, name: str) -> None:
    logits, labels = batch(dtype=torch.float64)
    labels[1] = 255
    labels[labels == 2] = 255  # a class that is only in void pixels
    loss = build_loss(name, num_classes=3, **ARGUMENTS.get(name, {}))
    logits.requires_grad_()
    value = loss(logits, labels)
    expected = by_hand(name, logits.detach(), one_hot(labels, 3), labels != 255)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    value.backward()
    void = (labels == 255)[:, None].expand_as(logits)
    assert not logits.grad[void].any()
    assert logits.grad[~void].any()
    # nothing that a void pixel holds gets out, not even what is no number
    for strange in (torch.nan, torch.inf, 1e6):
        changed = torch.where(void, strange, logits.detach()).requires_grad_()
        again = loss(changed, labels)
        again.backward()
        assert torch.equal(again, value)
        assert torch.equal(changed.grad, logits.grad)


@pytest.mark.parametrize("name", NAMES)
def test_classes_may_overlap_in_a_multi_hot_target(batch: Batch, name: str) -> None:
    logits, _ = batch(dtype=torch.float64)
    labels = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) < 0.4).long()
    valid = torch.ones(2, 20, 23, dtype=torch.bool)
    value = build_loss(name, num_classes=3, **ARGUMENTS.get(name, {}))(logits, labels)
    assert value.item() == pytest.approx(by_hand(name, logits, labels, valid), rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_one_class_and_probabilities_of_ones_own_are_a_sigmoids(batch: Batch, name: str) -> None:
    logits, labels = batch(num_classes=1, dtype=torch.float64, void=False)
    labels = (torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.4).long()[:, None]
    expected = by_hand(name, logits, labels, torch.ones(2, 20, 23, dtype=torch.bool), sigmoid=True)
    arguments = ARGUMENTS.get(name, {})
    assert build_loss(name, num_classes=1, **arguments)(logits, labels).item() == pytest.approx(expected, rel=1e-10)
    given = build_loss(name, num_classes=1, with_logits=False, **arguments)(logits.sigmoid(), labels)
    assert given.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_without_void_it_is_the_librarys_own(batch: Batch, name: str) -> None:
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    logits, labels = batch(void=False)
    expected = getattr(losses, f"{name.capitalize()}Loss")("multiclass", **ARGUMENTS.get(name, {}))(logits, labels)
    ours = build_loss(name, num_classes=3, **ARGUMENTS.get(name, {}))(logits, labels)
    torch.testing.assert_close(ours, expected)


def test_what_the_library_does_with_void_is_why_we_mask() -> None:
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    logits = torch.zeros(1, 2, 2, 2)
    void = torch.full((1, 2, 2), 255)
    assert losses.FocalLoss("multiclass", ignore_index=255)(logits, void).isnan()
    assert losses.LovaszLoss("multiclass", ignore_index=255)(logits, void).numel() == 0
    void[0, 0, 0] = 1
    logits[0, :, 1, 1] = torch.nan
    assert losses.DiceLoss("multiclass", ignore_index=255)(logits, void).isnan()
    for name in NAMES:
        assert build_loss(name, num_classes=2)(logits, void).isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_compute_is_the_mean_over_images_that_show_something(batch: Batch, name: str) -> None:
    logits, labels = batch(6)
    labels[1] = 255
    labels[3] = 255
    loss = build_loss(name, num_classes=3)
    values = [loss(logits[part], labels[part]).item() for part in (slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6))]
    if name == "focal":  # a sum over pixels, so exact
        expected = build_loss("focal", num_classes=3)(logits, labels).item()
    else:
        expected = (values[0] + values[1] + 2 * values[3]) / 4
    assert values[2] == 0
    assert loss.compute().item() == pytest.approx(expected, rel=1e-6)


def test_lovasz_counts_more_pixels_than_float32_can() -> None:
    # ones added up one by one end at 2^24 in float32; few enough here, but labels in half precision end at 2048
    probs = torch.zeros(1, 1, 64, 64, dtype=torch.float16)
    loss = LovaszLoss(1, with_logits=False)
    assert loss(probs, torch.ones(1, 1, 64, 64)).item() == pytest.approx(1.0)


def test_lovasz_has_the_gradient_of_float64_also_of_many_pixels(batch: Batch) -> None:
    logits, labels = batch(1, 3, 512, 512, dtype=torch.float64)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        LovaszLoss(3)(leaf, labels).backward()
        gradients.append(leaf.grad.double())
    exact, single = gradients
    assert (single - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize("gamma", [0, 1, 2, 5.0])
def test_focal_of_sure_pixels_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([100.0, -100.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4).clone().requires_grad_()
    labels = torch.tensor([[0, 0, 1, 255]]).expand(1, 4, 4)
    FocalLoss(2, gamma=gamma)(logits, labels).backward()
    assert logits.grad.isfinite().all()


def test_smooth_is_added_to_numerator_and_denominator() -> None:
    """One pixel of class 0, probability 1/2: |P ∩ Y| = 1/2, and |P| and |Y| have the mean 3/4. The other adds 0."""
    logits, labels = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]])
    expected = {
        DiceLoss(2, smooth=1.0): 1 - (0.5 + 1) / (0.75 + 1),
        JaccardLoss(2, smooth=1.0): 1 - (0.5 + 1) / (1 + 1),
        TverskyLoss(2, alpha=0.3, beta=0.7, smooth=1.0): 1 - (0.5 + 1) / (0.5 + 0.7 * 0.5 + 1),
    }
    for loss, value in expected.items():
        assert loss(logits, labels).item() == pytest.approx(value / 2)


def test_defaults_are_half_and_half_for_tversky_and_two_for_focal() -> None:
    logits, labels = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1).expand(1, 2, 1, 3), torch.tensor([[[0, 1, 1]]])
    torch.testing.assert_close(TverskyLoss(2)(logits, labels), DiceLoss(2)(logits, labels))
    # the class's own probability is 1/2, of which (1/2)² log 2 remains
    zeros = torch.zeros(1, 2, 1, 1)
    assert FocalLoss(2)(zeros, torch.tensor([[[1]]])).item() == pytest.approx(0.25 * math.log(2))


def test_focal_takes_small_probabilities_as_they_are() -> None:
    for p in (1e-2, 1e-4, 1e-6):
        value = FocalLoss(1, with_logits=False)(torch.tensor([[[[p]]]]), torch.tensor([[[[1]]]]))
        assert value.item() == pytest.approx(-((1 - p) ** 2) * math.log(p), rel=1e-4)


def test_wrong_arguments_are_named() -> None:
    for make in (
        lambda: FocalLoss(2, gamma=0.5),
        lambda: FocalLoss(2, gamma=math.nan),
        lambda: FocalLoss(2, alpha=2.0),
        lambda: DiceLoss(2, smooth=-1.0),
        lambda: TverskyLoss(2, alpha=-0.1),
        lambda: TverskyLoss(2, beta=math.nan),
    ):
        with pytest.raises(ValueError, match=r"(gamma|alpha|beta|smooth): expected a number (at least|from)"):
            make()


def test_the_library_is_imported_when_it_is_needed() -> None:
    program = """
import sys
sys.modules["segmentation_models_pytorch"] = None
from beyondpixel.losses import DiceLoss, LovaszLoss
LovaszLoss(2)
try:
    DiceLoss(2)
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install segmentation-models-pytorch" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiles_into_one_graph_with_equal_values(batch: Batch, name: str) -> None:
    backend = "aot_eager" if name == "lovasz" else "inductor"  # which takes a minute for the sorting
    compiled = torch.compile(build_loss(name, num_classes=3), fullgraph=True, backend=backend)
    logits, labels = batch()
    inside, outside = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value, expected = compiled(inside, labels), build_loss(name, num_classes=3)(outside, labels)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    assert (inside.grad - outside.grad).norm() <= 1e-6 * outside.grad.norm()
