"""A thousand drawn inputs: whatever comes in, the value and the gradient are finite."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beyondpixel.losses import RMILoss

SCALES = [0.0, 1e-6, 1.0, 10.0, 100.0, 1e4]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "seed": draw(st.integers(0, 2**31)),
        "size": draw(st.integers(0, 3)),
        "num_classes": draw(st.integers(1, 5)),
        "height": draw(st.integers(1, 40)),
        "width": draw(st.integers(1, 40)),
        "scale": draw(st.sampled_from(SCALES)),
        "dtype": draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])),
        "agreement": draw(st.sampled_from(["none", "perfect", "opposite", "constant"])),
        "labels": draw(
            st.sampled_from(["noise", "blocks", "one pixel", "one class", "void", "half void", "multi-hot"])
        ),
        "layout": draw(st.sampled_from(["contiguous", "channels_last", "expanded", "strided"])),
        "autocast": draw(st.booleans()),
        "options": {
            "region_size": draw(st.integers(1, 5)),
            "downsampling_factor": draw(st.one_of(st.integers(1, 6), st.sampled_from([(1, 2), (2, 4)]))),
            "pooling": draw(st.sampled_from(["avg", "max", "interp", "stride"])),
            "pixel_loss": draw(st.sampled_from(["bce", "bce_mean", "ce", None])),
            "covariance": draw(st.sampled_from(["sum", "mean"])),
            "ridge": draw(st.sampled_from([5e-4, 1e-6, 1e-12])),
            "absent_classes": draw(st.sampled_from(["include", "skip"])),
            "backend": draw(st.sampled_from(["auto", "plain", "c"])),
        },
    }


def make_labels(case: dict[str, Any], generator: torch.Generator) -> torch.Tensor:
    shape = (case["size"], case["height"], case["width"])
    labels = torch.zeros(shape, dtype=torch.long)
    kind = case["labels"]
    if kind in ("noise", "half void", "multi-hot"):
        labels = torch.randint(case["num_classes"], shape, generator=generator)
    elif kind == "blocks":
        labels[:, shape[1] // 3 :, shape[2] // 2 :] = case["num_classes"] - 1
    elif kind == "one pixel":
        labels[:, -1, -1] = case["num_classes"] - 1
    elif kind == "void":
        labels[:] = 255
    if kind == "half void":
        labels[torch.rand(shape, generator=generator) < 0.5] = 255
    return labels


def make_scores(case: dict[str, Any], labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    shape = (case["size"], case["num_classes"], case["height"], case["width"])
    one_hot = torch.nn.functional.one_hot(labels.clamp(max=case["num_classes"] - 1), case["num_classes"])
    signs = {"none": 0, "constant": 0, "perfect": 1, "opposite": -1}[case["agreement"]]
    noise = torch.zeros(shape) if case["agreement"] == "constant" else torch.randn(shape, generator=generator)
    scores = case["scale"] * (noise if signs == 0 else 0.1 * noise + signs * (2.0 * one_hot.movedim(-1, 1) - 1))
    scores = scores.to(case["dtype"])
    if case["layout"] == "channels_last":
        scores = scores.contiguous(memory_format=torch.channels_last)
    elif case["layout"] == "expanded" and case["size"] > 0:
        scores = scores[:1].expand(case["size"], -1, -1, -1)
    elif case["layout"] == "strided":
        scores = torch.stack([scores, scores], -1).flatten(3)[..., ::2]
    return scores.detach()


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_value_and_gradient_are_finite_or_the_error_is_clear(case: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(case["seed"])
    labels = make_labels(case, generator)
    scores = make_scores(case, labels, generator).requires_grad_()
    target = labels
    if case["labels"] == "multi-hot":
        target = torch.randint(2, scores.shape, generator=generator)
    loss = RMILoss(case["num_classes"], **case["options"])
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case["autocast"]):
            value = loss(scores, target)
    except ValueError as error:
        if "does not fit the pooled size" not in str(error):
            raise
        return
    value.backward()
    assert value.isfinite()
    assert scores.grad.isfinite().all()
    assert scores.grad.dtype == scores.dtype
    if case["labels"] != "multi-hot":
        void = (labels == 255)[:, None].expand(scores.shape)
        assert not scores.grad[void].any()
    if case["labels"] == "void" or case["size"] == 0:
        assert value == 0
    assert loss.compute().isfinite()
