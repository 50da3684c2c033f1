"""The operators behind the losses, as PyTorch's own checks see them, and their results on a GPU where there is one."""

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock, call

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from beyondpixel.losses import BinaryCrossEntropyLoss, RMILoss
from beyondpixel.losses.functional import cross_entropy, rmi_lower_bound
from beyondpixel.losses.functional import target as target_module
from beyondpixel.losses.functional.target import read_target
from beyondpixel.losses.ops.operators import bce_pool

Batch = Callable[..., tuple[Tensor, Tensor]]
OPERATORS = torch.ops.beyondpixel
POOLINGS = [("none", 1), ("identity", 1), ("avg", 3), ("max", 4)]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("backend", ["plain", "c"])
@pytest.mark.parametrize(("pooling", "kernel_size"), POOLINGS)
def test_pooling_passes_opcheck(batch: Batch, pooling: str, kernel_size: int, backend: str) -> None:
    logits, labels = batch()
    target = read_target(logits, labels, ignore_index=255)
    options = (pooling, kernel_size, True, True, backend)
    torch.library.opcheck(OPERATORS.bce_pool.default, (logits.requires_grad_(), target, *options))
    logits = logits.detach()
    bce, pooled, _, indices = OPERATORS.bce_pool(logits, target, *options)
    arguments = (torch.ones_like(bce), torch.ones_like(pooled), logits, target, indices, *options)
    torch.library.opcheck(OPERATORS.bce_pool_backward.default, arguments)


@pytest.mark.parametrize("backend", ["plain", "c"])
def test_moments_pass_opcheck(backend: str) -> None:
    labels, probs = torch.rand(2, 2, 3, 9, 8)
    torch.library.opcheck(OPERATORS.region_moments.default, (labels, probs.requires_grad_(), 3, 1, backend))
    arguments = (torch.rand(2, 3, 9, 18, dtype=torch.float64), labels, probs.detach(), 3, 1, backend)
    torch.library.opcheck(OPERATORS.region_moments_backward.default, arguments)


def test_target_check_passes_opcheck(batch: Batch) -> None:
    logits, labels = batch()
    torch.library.opcheck(OPERATORS.check_target.default, (labels, None, 3, 255))
    torch.library.opcheck(OPERATORS.check_target.default, ((logits > 0), logits.sigmoid(), 3, 255))


@pytest.mark.parametrize("capturing", [None, 0, 1])
def test_labels_on_another_device_than_the_current_are_checked_in_its_stream(
    monkeypatch: pytest.MonkeyPatch, capturing: int | None
) -> None:
    """With tensors that have no values, as if the current device were 0; a stream that is captured takes no event."""
    current, event = [0], Mock()

    def exchange(device: int) -> int:
        previous, current[0] = current[0], device
        return previous

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current[0] == capturing)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch, "Event", Mock(return_value=event))
    monkeypatch.setattr(target_module, "_pending", [])
    with FakeTensorMode():
        target_module._check_target(torch.zeros(1, 2, 3, dtype=torch.int64, device="cuda:1"), None, 3, 255)
    assert event.record.mock_calls == ([] if capturing == 1 else [call("stream of cuda:1")])
    assert current == [0]


@pytest.mark.parametrize("pooling", ["avg", "max", "interp", "stride"])
def test_functional_gradient_is_autograds_on_the_plain_path(batch: Batch, pooling: str) -> None:
    logits, labels = batch(dtype=torch.float64)
    probs = logits.sigmoid()

    def total(x: Tensor) -> Tensor:
        return rmi_lower_bound(x, labels, pooling=pooling, backend="plain").sum() + cross_entropy(x, labels)

    leaf = probs.clone().requires_grad_()
    total(leaf).backward()
    torch.testing.assert_close(torch.func.grad(total)(probs), leaf.grad)


def test_cross_entropy_of_the_operator_has_torchs_gradient_in_its_functional_form(batch: Batch) -> None:
    logits, labels = batch(dtype=torch.float64)
    target = read_target(logits, labels, ignore_index=255)
    gradient = torch.func.grad(lambda x: bce_pool(x, target, backend="plain")[0])(logits)
    one_hot = torch.nn.functional.one_hot(labels.clamp(max=2), 3).movedim(-1, 1)
    expected = (logits.sigmoid() - one_hot) * (labels != 255)[:, None]
    torch.testing.assert_close(gradient, expected)


def test_exp_and_log_of_the_c_kernels_are_those_of_float64_to_float_rounding() -> None:
    logits = torch.cat([torch.linspace(-80, 80, 801), torch.linspace(-3, 3, 400)]).view(-1, 1, 1, 1)
    target = torch.zeros(logits.shape, dtype=torch.int16)  # multi-hot: nowhere of the class
    _, probs, _, _ = OPERATORS.bce_pool(logits, target, "identity", 1, True, False, "c")
    pixels = [OPERATORS.bce_pool(x[None], target[:1], "none", 1, True, True, "c")[0] for x in logits]
    exact = torch.logaddexp(logits.double(), torch.zeros((), dtype=torch.float64))
    # a float32 is rounded by 6e-8
    torch.testing.assert_close(probs.double(), logits.double().sigmoid(), rtol=2e-7, atol=0)
    torch.testing.assert_close(torch.stack(pixels), exact.flatten(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("pooling", ["none", "identity", "avg", "max"])
@pytest.mark.parametrize("size", [0.0, 1.0, 20.0, 60.0])
def test_cross_entropy_of_the_c_kernels_over_many_rows_is_that_of_float64(size: float, pooling: str) -> None:
    # they multiply over the rows before they take a logarithm: at logit 0 by 2 each, at logit 60 by 1 + 1e-26
    rows = torch.full((1, 2, 523, 45), size) * (torch.rand(1, 2, 523, 45) * 0.5 + 0.75)
    target = torch.randint(-1, 2, (1, 523, 45), dtype=torch.int16)
    kernel_size = 3 if pooling in ("avg", "max") else 1
    is_class = target[:, None] == torch.arange(2, dtype=torch.int16)[:, None, None]
    for signs in (torch.where(is_class, 1.0, -1.0), torch.randn(rows.shape).sign()):
        logits = rows * signs  # right everywhere, or at random
        value = OPERATORS.bce_pool(logits, target, pooling, kernel_size, True, True, "c")[0]
        toward = torch.where(is_class, -logits, logits).double()
        exact = torch.logaddexp(toward, torch.zeros((), dtype=torch.float64)) * (target >= 0)[:, None]
        torch.testing.assert_close(value, exact.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_gradient_gets_the_memory_of_one_that_nobody_has_any_more(dtype: torch.dtype) -> None:
    sides = (1, 2, 2048, 2050)
    target = torch.zeros(1, *sides[2:], dtype=torch.int16)
    one = torch.ones((), dtype=torch.float64)

    def gradient(logit: float) -> torch.Tensor:
        logits = torch.full(sides, logit, dtype=dtype)
        nothing, indices = torch.empty(0), torch.empty(0, dtype=torch.int32)
        return OPERATORS.bce_pool_backward(one, nothing, logits, target, indices, "none", 1, True, True, "c")

    first, second = gradient(0.0), gradient(20.0)  # both are kept
    view, address = first[0, 0, :2], first.data_ptr()
    del first
    third = gradient(-20.0)  # a part of the first one is still in use
    for held, expected in ((view, -0.5), (second[:, 1], 1.0), (third[:, 1], 0.0)):
        torch.testing.assert_close(held, torch.full_like(held, expected), atol=1e-6, rtol=0)
    if dtype == torch.float32:
        assert len({address, second.data_ptr(), third.data_ptr()}) == 3
        last = third.data_ptr()
        del third, held
        assert gradient(0.0).data_ptr() == last


def losses() -> dict[str, Any]:
    rmi = {f"rmi-{pooling}": RMILoss(3, pooling=pooling, downsampling_factor=2) for pooling in ("avg", "max", "interp")}
    return {"bce": BinaryCrossEntropyLoss(3), "rmi-stride": RMILoss(3, pooling="stride", downsampling_factor=2), **rmi}


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", list(losses()))
def test_gpu_gives_what_the_cpu_gives(batch: Batch, name: str, dtype: torch.dtype) -> None:
    logits, labels = batch(dtype=dtype)
    on_cpu, on_gpu = logits.clone().requires_grad_(), logits.cuda().requires_grad_()
    expected = losses()[name](on_cpu, labels)
    value = losses()[name].cuda()(on_gpu, labels.cuda())
    value.backward()
    expected.backward()
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-5, atol=1e-6)
    tolerance = max(1e-5, 2 * torch.finfo(dtype).eps)
    assert (on_gpu.grad.cpu() - on_cpu.grad).norm() <= tolerance * on_cpu.grad.norm()


@needs_cuda
@pytest.mark.parametrize("name", list(losses()))
def test_gpu_is_never_waited_for(batch: Batch, name: str) -> None:
    logits, labels = (tensor.cuda() for tensor in batch())
    loss = losses()[name].cuda()
    loss(logits.requires_grad_(), labels).backward()  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(logits, labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.parametrize("name", list(losses()))
def test_cuda_graph_replays(batch: Batch, name: str) -> None:
    logits, labels = (tensor.cuda() for tensor in batch())
    other, _ = batch(seed=1)
    loss = losses()[name].cuda()
    logits.requires_grad_()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(loss(logits, labels), logits)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss(logits, labels)
        (gradient,) = torch.autograd.grad(value, logits)
    with torch.no_grad():
        logits.copy_(other)
    graph.replay()
    leaf = other.requires_grad_()
    expected = losses()[name](leaf, labels.cpu())
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-5, atol=1e-6)
    (expected_gradient,) = torch.autograd.grad(expected, leaf)
    assert (gradient.cpu() - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()


@needs_cuda
def test_wrong_label_on_a_gpu_is_named_at_the_latest_by_compute(batch: Batch) -> None:
    logits, labels = (tensor.cuda() for tensor in batch())
    labels[0, 3, 3] = 7
    loss = RMILoss(3).cuda()
    loss(logits, labels)
    with pytest.raises(ValueError, match="got the label 7"):
        loss.compute()
