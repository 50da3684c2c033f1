"""The losses under torch.compile: one graph, compiled once, with the values and gradients of eager mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from beyondpixel.losses import RMILoss, SegmentationLoss, build_loss

Batch = Callable[..., tuple[Tensor, Tensor]]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ce": ("ce", {}),
    "bce": ("bce", {}),
    "affinity": ("affinity", {"stride": 4}),
    "adaptive_affinity": ("adaptive_affinity", {"stride": 4, "sizes": (3,)}),
    "pyramid": ("pyramid", {"scales": (0.5, 1.0)}),
    **{
        f"rmi-{backend}-{pooling}": ("rmi", {"backend": backend, "pooling": pooling, "downsampling_factor": 2})
        for backend in ("c", "plain")
        for pooling in ("avg", "max", "interp", "stride")
    },
    "rmi-ce-two-factors": ("rmi", {"pixel_loss": "ce", "downsampling_factor": (2, 3), "absent_classes": "skip"}),
}


def check(name: str, arguments: dict[str, Any], batch: Batch, backend: str) -> None:
    loss, eager = (build_loss(name, num_classes=3, **arguments) for _ in range(2))
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for step in range(20):
        logits, labels = batch(seed=step)
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        loss.progress = eager.progress = step / 20
        # from the second batch on, compiling again is an error
        torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile")
        try:
            value = compiled(ours, labels)
        finally:
            torch.compiler.set_stance("default")
        value.backward()
        expected = eager(theirs, labels)
        expected.backward()
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)
        assert not any(term.requires_grad for term in loss.terms.values())
    torch.testing.assert_close(loss.compute(), eager.compute())
    torch.testing.assert_close(loss.terms, eager.terms)
    assert loss.update_count == 20


# inductor needs a minute for adaptive affinity's two sets of weights, which are affinity's own steps twice
@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != "adaptive_affinity"])
def test_inductor_makes_one_graph_once(batch: Batch, case: str) -> None:
    check(*CASES[case], batch, "inductor")


@pytest.mark.parametrize("case", ["ce", "rmi-c-avg", "adaptive_affinity"])
def test_one_graph_is_made_once(batch: Batch, case: str) -> None:
    check(*CASES[case], batch, "aot_eager")


def test_another_shape_compiles_once_more(batch: Batch) -> None:
    loss, eager = (build_loss("rmi", num_classes=3, downsampling_factor=2) for _ in range(2))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for height, width, stance in ((20, 23, "default"), (24, 21, "default"), (30, 28, "fail_on_recompile")):
        logits, labels = batch(3, 3, height, width)
        torch.compiler.set_stance(stance)
        try:
            value = compiled(logits, labels)
        finally:
            torch.compiler.set_stance("default")
        torch.testing.assert_close(value, eager(logits, labels), rtol=1e-6, atol=1e-6)


def test_more_losses_than_versions_of_a_function_compile_in_one_process(batch: Batch) -> None:
    names = ["ce", "bce", "dice", "jaccard", "tversky", "focal", "lovasz", "pyramid", "rmi", "affinity"]
    losses = [build_loss(name, num_classes=3) for name in names]
    assert len(losses) > 8
    logits, labels = batch()
    for loss in losses:
        value = torch.compile(loss, fullgraph=True, backend="eager")(logits, labels)
        torch.testing.assert_close(value, loss(logits, labels))


class Holder(torch.nn.Module):
    def __init__(self, loss: SegmentationLoss) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        value: Tensor = self.loss(self.layer(x), y)
        return value


def test_module_that_holds_a_loss_compiles_and_names_a_wrong_label(batch: Batch) -> None:
    holder = Holder(RMILoss(3, downsampling_factor=2))
    compiled = torch.compile(holder, fullgraph=True, backend="aot_eager")
    x, y = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = compiled(x, y)
        value.backward()
        torch.testing.assert_close(value, holder(x, y))
    assert holder.layer.weight.grad.isfinite().all()
    wrong = y.clone()
    wrong[0, 3, 3] = 7
    with pytest.raises(ValueError, match=r"labels in 0 … 2 or ignore_index 255, got the label 7"):
        compiled(x, wrong)


def test_module_that_holds_a_loss_exports_in_training_mode(batch: Batch) -> None:
    holder = Holder(RMILoss(3, downsampling_factor=2))
    x, y = batch()
    program = torch.export.export(holder, (x, y), strict=False)
    torch.testing.assert_close(program.module()(x, y), holder(x, y))
