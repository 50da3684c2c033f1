"""The RMI loss against float64 loops, and what it does at the edges."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses import RMILoss
from beyondpixel.losses.functional import rmi_lower_bound

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
    options["ridge"] = 5e-4 if covariance == "sum" else 1e-6
    expected = loop_rmi.loop_bound(probs.numpy(), one_hot.numpy(), factor=factor, **options)
    bound = rmi_lower_bound(logits.sigmoid(), labels, downsampling_factor=factor, **options)
    torch.testing.assert_close(bound, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("region_size", [1, 2, 3])
@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("pooling", ["avg", "max", "interp", "stride"])
def test_gradient_is_that_of_the_value(batch: Batch, pooling: str, factor: int, region_size: int) -> None:
    logits, labels = batch(1, 2, 9, 10, dtype=torch.float64)
    loss = RMILoss(2, region_size=region_size, downsampling_factor=factor, pooling=pooling)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (logits.requires_grad_(),))


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
