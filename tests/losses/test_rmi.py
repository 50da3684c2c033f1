"""The RMI loss against float64 loops, and what it does at the edges."""

import math
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses import RMILoss
from beyondpixel.losses.functional import rmi_lower_bound
from beyondpixel.losses.functional.log_det import half_log_det, stable_cholesky
from beyondpixel.losses.ops.operators import region_moments

Batch = Callable[..., tuple[Tensor, Tensor]]


def masked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot labels, both 0 where void."""
    valid = (labels != 255)[:, None]
    one_hot = F.one_hot(torch.where(valid[:, 0], labels, 0), logits.shape[1]).movedim(-1, 1)
    return logits.sigmoid() * valid, (one_hot * valid).to(logits.dtype)


@pytest.mark.parametrize("covariance", ["sum", "mean"])
@pytest.mark.parametrize(
    ("pooling", "region_size", "factor"),
    [
        (pooling, region_size, factor)
        for pooling in ("avg", "max", "interp", "stride")
        for region_size, factor in ((1, 4), (2, 3), (3, 1), (3, 2), (4, 3))
    ],
)
def test_bound_is_eq_15(
    batch: Batch, loop_rmi: ModuleType, *, pooling: str, region_size: int, factor: int, covariance: str
) -> None:
    logits, labels = batch(dtype=torch.float64)
    probs, one_hot = masked(logits, labels)
    options = {"region_size": region_size, "pooling": pooling, "covariance": covariance}
    options["ridge"] = 5e-4 if covariance == "sum" else 3e-6
    expected = loop_rmi.loop_bound(probs.numpy(), one_hot.numpy(), factor=factor, **options)
    bound = rmi_lower_bound(logits.sigmoid(), labels, downsampling_factor=factor, **options)
    torch.testing.assert_close(bound, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("region_size", [1, 2, 3])
@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("pooling", ["avg", "max", "interp", "stride"])
def test_gradient_is_that_of_the_value(batch: Batch, pooling: str, factor: int, region_size: int) -> None:
    logits, labels = batch(1, 2, 9, 10, dtype=torch.float64)
    loss = RMILoss(2, region_size=region_size, downsampling_factor=factor, pooling=pooling)
    # every entry of the gradient for one size of each pooling, a random combination of the entries for the others
    some = (region_size, factor) != (3, 2)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (logits.requires_grad_(),), fast_mode=some)


def test_gradient_is_autograds_of_the_plain_way(batch: Batch, plain_rmi: ModuleType) -> None:
    logits, labels = batch(2, 4, 37, 33, dtype=torch.float64)
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    RMILoss(4)(ours, labels).backward()
    plain_rmi.plain_bce_rmi(plain, labels).backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-9, atol=1e-12)


def test_terms_are_weighted_as_eq_16(batch: Batch, loop_rmi: ModuleType) -> None:
    logits, labels = batch(dtype=torch.float64)
    loss = RMILoss(3, pixel_weight=0.3, downsampling_factor=2)
    value = loss(logits, labels)
    probs, one_hot = masked(logits, labels)
    bound = loop_rmi.loop_bound(
        probs.numpy(), one_hot.numpy(), region_size=3, factor=2, pooling="avg", covariance="sum", ridge=5e-4
    )
    assert loss.terms["rmi"].item() == pytest.approx(-bound.mean(0).sum(), rel=1e-9)
    assert value.item() == pytest.approx(0.3 * loss.terms["pixel"].item() - 0.7 * bound.mean(0).sum(), rel=1e-9)


def test_absent_class_is_half_the_log_of_the_ridge_without_gradient() -> None:
    labels = torch.zeros(1, 24, 24, dtype=torch.long)
    logits = torch.randn(1, 2, 24, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = RMILoss(2, pixel_loss=None)
    loss(logits, labels).backward()
    assert rmi_lower_bound(logits.sigmoid(), labels)[0, 1].item() == pytest.approx(3.80045, abs=1e-5)
    assert not logits.grad[:, 1].any()
    assert logits.grad[:, 0].any()


def test_skip_leaves_out_the_constant_of_absent_classes() -> None:
    labels = torch.zeros(1, 24, 24, dtype=torch.long)
    logits = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    include, skip = (RMILoss(3, pixel_loss=None, absent_classes=name)(logits, labels) for name in ("include", "skip"))
    assert (skip - include).item() == pytest.approx(2 * 3.80045, abs=1e-4)


def test_skip_keeps_a_class_that_one_of_several_factors_shows() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[0, 5, 5] = 1  # beside the pixels that the nearest neighbor takes at factor 2
    logits = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"pooling": "interp", "region_size": 2, "pixel_loss": None}

    def difference(factors: tuple[int, ...]) -> float:
        include, skip = (
            RMILoss(2, downsampling_factor=factors, absent_classes=name, **options) for name in ("include", "skip")
        )
        return (skip(logits, labels) - include(logits, labels)).item()

    assert difference((2,)) == pytest.approx(3.80045, abs=1e-4)
    assert difference((1, 2)) == 0


def test_defaults_of_the_bound_are_the_authors(batch: Batch, loop_rmi: ModuleType) -> None:
    logits, labels = batch(dtype=torch.float64)
    probs, one_hot = masked(logits, labels)
    expected = loop_rmi.loop_bound(
        probs.numpy(), one_hot.numpy(), region_size=3, factor=4, pooling="avg", covariance="sum", ridge=5e-4
    )
    torch.testing.assert_close(rmi_lower_bound(logits.sigmoid(), labels), torch.from_numpy(expected))


@pytest.mark.parametrize("downsampling_factor", [1, 3])
def test_a_perfect_prediction_has_half_the_log_of_twice_the_ridge(downsampling_factor: int) -> None:
    target = torch.randint(2, (1, 60, 60), generator=torch.Generator().manual_seed(0))[:, None]
    bound = rmi_lower_bound(target.double(), target, downsampling_factor=downsampling_factor)
    assert -bound.item() == pytest.approx(0.5 * math.log(2 * 5e-4), abs=1e-3)


def test_affine_predictions_are_perfect_ones() -> None:
    # the residual of the best linear estimate is 0 whatever the scale of the predictions: I_l nears -½ log ξ
    labels = torch.zeros(1, 40, 40, dtype=torch.long)
    labels[:, 10:30, 10:30] = 1
    faint = 0.4 + 0.2 * F.one_hot(labels, 2).movedim(-1, 1).double()
    bound = rmi_lower_bound(faint, labels, region_size=1, downsampling_factor=1)
    # by hand: with s the squared deviations of the labels, S_Y = s, C = s / 5 and S_P = s / 25
    s = 400 - 400**2 / 1600
    m = s - (0.2 * s) ** 2 / (0.04 * s + 5e-4) + 5e-4
    torch.testing.assert_close(bound, torch.full((1, 2), -0.5, dtype=torch.float64) * torch.tensor(m).double().log())


@pytest.mark.parametrize("covariance", ["sum", "mean"])
def test_bound_cannot_tell_predictions_from_their_inverse(batch: Batch, covariance: str) -> None:
    # P enters by its covariances only, and 1 - P has those of P but for a sign that squares away
    logits, labels = batch(dtype=torch.float64)
    labels = labels.clamp(max=logits.shape[1] - 1)  # void pixels enter as probability 0 either way
    settings: dict[str, Any] = {"downsampling_factor": 1, "covariance": covariance}
    bound, inverse = (rmi_lower_bound(probs, labels, **settings) for probs in (logits.sigmoid(), (-logits).sigmoid()))
    torch.testing.assert_close(inverse, bound)


def test_weights_of_neighbors_add_a_constant(batch: Batch) -> None:
    """log det (D M D) = log det M + 2 Σ log w: near neighbors weigh e² as much as far ones, to the same effect."""
    logits, labels = batch(dtype=torch.float64)
    offsets = torch.arange(3.0, dtype=torch.float64) - 1
    weights = torch.exp(-torch.hypot(offsets[:, None], offsets).flatten())
    preds = logits.detach().requires_grad_()
    probs, one_hot = masked(preds, labels)
    moments = region_moments(one_hot, probs, region_size=3, step=1, backend="plain")
    scale = torch.cat([weights, weights])
    values = [
        half_log_det(one, 1e-9, residual_ridge=1e-9)[0].sum() for one in (moments, moments * scale[:, None] * scale)
    ]
    constant = weights.log().sum() * logits.shape[0] * logits.shape[1]
    torch.testing.assert_close(values[1] - values[0], constant, rtol=1e-6, atol=0)
    plain, weighted = (torch.autograd.grad(value, preds, retain_graph=True)[0] for value in values)
    assert plain.abs().max() > 0
    torch.testing.assert_close(weighted, plain, rtol=0, atol=1e-6 * float(plain.abs().max()))


def test_several_factors_are_averaged(batch: Batch) -> None:
    logits, labels = batch()
    both = RMILoss(3, downsampling_factor=(2, 3), pixel_loss=None)(logits, labels)
    alone = [RMILoss(3, downsampling_factor=factor, pixel_loss=None)(logits, labels) for factor in (2, 3)]
    torch.testing.assert_close(both, sum(alone) / 2)


def test_one_class_against_the_rest(batch: Batch, plain_rmi: ModuleType) -> None:
    logits, labels = batch(num_classes=2, void=False, dtype=torch.float64)
    target = labels[:, None]
    value = RMILoss(1, pixel_loss=None, downsampling_factor=2)(logits[:, :1], target)
    expected = plain_rmi.plain_rmi(
        logits[:, :1].sigmoid(), target.double(), region_size=3, factor=2, pooling="avg", ridge=5e-4
    )
    torch.testing.assert_close(value, expected)
    with pytest.raises(ValueError, match=r"got the label 1; a binary mask is a multi-hot target \(N, 1, H, W\)"):
        RMILoss(1)(logits[:, :1], labels)


@pytest.mark.parametrize("pixel_loss", ["bce", "bce_mean"])
def test_probabilities_give_what_their_logits_give(batch: Batch, pixel_loss: str) -> None:
    logits, labels = batch(dtype=torch.float64)
    scores, probs = logits.clone().requires_grad_(), logits.sigmoid().requires_grad_()
    value = RMILoss(3, pixel_loss=pixel_loss)(scores, labels)
    other = RMILoss(3, pixel_loss=pixel_loss, with_logits=False)(probs, labels)
    value.backward()
    other.backward()
    torch.testing.assert_close(value, other)
    torch.testing.assert_close(scores.grad, probs.grad * (probs * (1 - probs)).detach())
    with pytest.raises(ValueError, match="expected probabilities in .* apply a sigmoid or softmax"):
        RMILoss(3, with_logits=False)(logits, labels)


@pytest.mark.parametrize("region_size", [1, 2, 3, 5])
@pytest.mark.parametrize("pooling", ["avg", "max", "interp", "stride"])
@pytest.mark.parametrize("pixel_loss", ["bce", None])
def test_c_gives_what_plain_gives(batch: Batch, pooling: str, region_size: int, pixel_loss: str | None) -> None:
    for factor, height, width in ((1, 11, 9), (2, 26, 13), (3, 31, 22), (4, 40, 29)):
        logits, labels = batch(height=height, width=width)
        options = {"region_size": region_size, "downsampling_factor": factor, "pooling": pooling}
        if min(height, width) // factor < region_size:
            continue
        plain, c = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        value = RMILoss(3, pixel_loss=pixel_loss, backend="plain", **options)(plain, labels)
        other = RMILoss(3, pixel_loss=pixel_loss, backend="c", **options)(c, labels)
        value.backward()
        other.backward()
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)
        assert (plain.grad - c.grad).norm() <= 1e-5 * plain.grad.norm()


@pytest.mark.parametrize("region_size", [6, 7, 12])
def test_c_gives_what_plain_gives_in_large_regions(region_size: int) -> None:
    labels, probs = torch.rand(2, 2, 2, 21, 19, generator=torch.Generator().manual_seed(0))
    moments = {
        name: region_moments(labels, probs, region_size=region_size, step=1, backend=name) for name in ("plain", "c")
    }
    torch.testing.assert_close(moments["c"], moments["plain"], rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(moments["plain"])
    gradients = []
    for name in ("plain", "c"):
        leaf = probs.clone().requires_grad_()
        (region_moments(labels, leaf, region_size=region_size, step=1, backend=name) * weights).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["plain", "c"])
def test_a_class_that_is_ruled_out_has_a_finite_loss(backend: str) -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    logits = torch.randn(1, 2, 16, 16)
    logits[:, 1] = -torch.inf
    value = RMILoss(2, downsampling_factor=2, backend=backend)(logits, labels)
    logits[:, 1] = -100
    torch.testing.assert_close(value, RMILoss(2, downsampling_factor=2, backend=backend)(logits, labels))


@pytest.mark.parametrize("backend", ["plain", "c"])
@pytest.mark.parametrize("scale", [1.0, 20.0, 1e4])
def test_near_perfect_and_extreme_scores_stay_finite(backend: str, scale: float) -> None:
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[0, 20:44, 20:44] = 1
    labels[1, 7, 9] = 2  # one pixel; class 3 is absent
    one_hot = F.one_hot(labels, 4).movedim(-1, 1)
    logits = (scale * (2.0 * one_hot - 1)).requires_grad_()
    loss = RMILoss(4, backend=backend, downsampling_factor=2)
    value = loss(logits, labels)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    assert loss.jittered == 0


def test_matrix_that_is_not_positive_definite_gets_more_and_is_counted() -> None:
    good = torch.eye(3, dtype=torch.float64)
    bad = torch.diag(torch.tensor([1.0, 1.0, -1e-3], dtype=torch.float64))
    lost = torch.full((3, 3), torch.nan, dtype=torch.float64)
    factors, jittered = stable_cholesky(torch.stack([good, bad, lost]), 1e-6, jitter=1e-6)
    assert jittered == 1
    torch.testing.assert_close(factors[0] @ factors[0].T, good + 1e-6 * torch.eye(3, dtype=torch.float64))
    assert factors[1].isfinite().all()
    assert (factors[1].diagonal() > 0).all()
    assert factors[2].isnan().all()


def test_what_is_added_is_past_the_rounding_of_the_entries() -> None:
    def diagonal(*entries: float, **options: float | Tensor) -> tuple[list[float], int]:
        matrix = torch.tensor(entries, dtype=torch.float64).diag()
        factor, jittered = stable_cholesky(matrix, 0.0, **options)  # type: ignore[arg-type]
        return (factor @ factor.T).diagonal().tolist(), int(jittered)

    assert diagonal(2.0, 1e-9, jitter=0.25) == (pytest.approx([2.0, 1e-9]), 0)
    # a pivot that is not above the rounding counts as none
    assert diagonal(2.0, 1e-9, jitter=0.25, rounding=1e-8) == (pytest.approx([2.25, 0.25]), 1)
    # 2⁻²⁴ of the largest entry, where that is more than the least that is added
    assert diagonal(2.0**24, -0.5, jitter=0.25) == (pytest.approx([2.0**24 + 1, 0.5]), 1)


def test_jitter_is_counted_by_the_loss(batch: Batch) -> None:
    _, labels = batch()
    loss = RMILoss(3, ridge=1e-30, downsampling_factor=1, pooling="avg", region_size=3)
    saturated = 1e4 * (2.0 * F.one_hot(labels.clamp(max=2), 3).movedim(-1, 1) - 1)
    value = loss(saturated.requires_grad_(), labels)
    value.backward()
    assert value.isfinite()
    assert saturated.grad.isfinite().all()
    once = int(loss.jittered)
    assert once > 0
    loss(saturated, labels)
    assert loss.jittered == 2 * once
    loss.reset()
    assert loss.jittered == 0
    # each of several factors counts
    both = RMILoss(3, ridge=1e-30, downsampling_factor=(1, 1), region_size=3)
    both(saturated, labels)
    assert both.jittered == 2 * once


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"pooling": "mean"}, "pooling: expected one of 'avg', 'max', 'interp', 'stride', got 'mean'"),
        ({"pixel_loss": "dice"}, "pixel_loss: expected one of 'bce', 'bce_mean', 'ce', None, got 'dice'"),
        ({"covariance": "n"}, "covariance: expected one of 'sum', 'mean', got 'n'"),
        ({"backend": "cuda"}, "backend: expected one of 'auto', 'plain', 'c', 'triton', got 'cuda'"),
        (
            {"backend": "eager"},
            "backend: 'eager' is now called 'plain'; use 'auto', which selects the fastest available",
        ),
        (
            {"backend": "compiled"},
            "backend: 'compiled' is now called 'c'; use 'auto', which selects the fastest available",
        ),
        ({"absent_classes": "drop"}, "absent_classes: expected one of 'include', 'skip', got 'drop'"),
        ({"region_size": 0}, "region_size: expected a positive integer, got 0"),
        ({"downsampling_factor": ()}, "downsampling_factor: expected at least one factor"),
        ({"downsampling_factor": (2, 0)}, "downsampling_factor: expected a positive integer, got 0"),
        ({"pixel_weight": 1.5}, "pixel_weight: expected a number from 0 to 1, got 1.5"),
        ({"pixel_weight": -0.5}, "pixel_weight: expected a number from 0 to 1, got -0.5"),
        ({"pixel_weight": float("nan")}, "pixel_weight: expected a number from 0 to 1, got nan"),
        ({"ridge": 0.0}, "ridge: expected a positive number, got 0.0"),
        ({"num_classes": 0}, "num_classes: expected a positive integer, got 0"),
        ({"ignore_index": 1.0}, "ignore_index: expected an integer label, got 1.0"),
    ],
)
def test_wrong_arguments_are_named_at_construction(argument: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RMILoss(**{"num_classes": 3, **argument})


def test_region_that_does_not_fit_names_sizes_and_remedy(batch: Batch) -> None:
    logits, labels = batch()
    message = r"region of 7 × 7 does not fit the pooled size 6 × 6 \(preds of 20 × 23, .*use larger crops"
    with pytest.raises(ValueError, match=message):
        RMILoss(3, region_size=7)(logits, labels)


@pytest.mark.parametrize("pooling", ["avg", "max", "interp", "stride"])
@pytest.mark.parametrize("region_size", [1, 3])
def test_an_image_without_pixels_is_too_small(pooling: str, region_size: int) -> None:
    loss = RMILoss(2, pooling=pooling, region_size=region_size, downsampling_factor=4)
    with pytest.raises(ValueError, match=r"does not fit the pooled size . × . \(preds of 0 × 0"):
        loss(torch.zeros(1, 2, 0, 0), torch.zeros(1, 0, 0, dtype=torch.int64))


def test_triton_asks_for_cuda_and_names_auto(batch: Batch) -> None:
    logits, labels = batch()
    with pytest.raises(ValueError, match="backend: 'triton' needs preds on a CUDA device, got cpu; use backend='auto'"):
        RMILoss(3, backend="triton")(logits, labels)


def test_integer_logits_are_named(batch: Batch) -> None:
    logits, labels = batch()
    with pytest.raises(TypeError, match="preds: expected floating-point .* got torch.int64; use preds.float"):
        RMILoss(3)(logits.long(), labels)


def test_rmi_lower_bound_is_differentiable_and_takes_multi_hot(batch: Batch) -> None:
    logits, labels = batch(void=False, dtype=torch.float64)
    probs = logits.sigmoid()
    target = F.one_hot(labels, 3).movedim(-1, 1)
    torch.testing.assert_close(rmi_lower_bound(probs, target), rmi_lower_bound(probs, labels))
    assert torch.autograd.gradcheck(
        lambda x: rmi_lower_bound(x, labels, downsampling_factor=3), (probs.requires_grad_(),), fast_mode=True
    )
