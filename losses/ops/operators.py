"""The two full-size operators, and the selection of their implementation.

An implementation is a module with four functions, `bce_pool`, `bce_pool_backward`, `region_moments` and
`region_moments_backward`, that take the operators' arguments except the backend. `plain` is the reference.
"""

import functools
import importlib
import os
import subprocess
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from beyondpixel.losses.ops import c, plain
from beyondpixel.losses.ops.c.library import load_library

BACKENDS = ("auto", "plain", "c", "triton")

torch.library.define(
    "beyondpixel::bce_pool",
    "(Tensor preds, Tensor target, str pooling, int kernel_size, bool with_logits, bool with_bce, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "beyondpixel::bce_pool_backward",
    "(Tensor grad_bce, Tensor grad_pooled, Tensor preds, Tensor target, Tensor indices, str pooling,"
    " int kernel_size, bool with_logits, bool with_bce, str backend) -> Tensor",
)
torch.library.define(
    "beyondpixel::region_moments",
    "(Tensor labels, Tensor probs, int region_size, int step, str backend) -> Tensor",
)
torch.library.define(
    "beyondpixel::region_moments_backward",
    "(Tensor weights, Tensor labels, Tensor probs, int region_size, int step, str backend) -> Tensor",
)


def bce_pool(
    preds: Tensor,
    target: Tensor,
    *,
    pooling: str = "none",
    kernel_size: int = 1,
    with_logits: bool = True,
    with_bce: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute binary cross entropy and pooled probabilities in one pass over the logits.

    Args:
        preds: (N, C, H, W) logits, or probabilities.
        target: int16, as returned by `functional.target.read_target`.
        pooling: "none", no pooled probabilities; "identity", probabilities of full size; "avg" or "max" over pooling
            windows with stride kernel_size and padding kernel_size // 2.
        kernel_size: side of a pooling window, 1 for "none" and "identity".
        with_logits: whether preds are logits.
        with_bce: whether to compute the binary cross entropy.
        backend: one of `BACKENDS`.

    Returns:
        The binary cross entropy summed over valid pixels and classes, float64 (0 without `with_bce`); the pooled
        probabilities (N, C, h, w), 0 where void, at least float32; and the pooled target of the same shape and dtype,
        empty if nothing is pooled. Differentiable in preds.
    """
    inputs = (preds, target, pooling, kernel_size, with_logits, with_bce, backend)
    bce, pooled, pooled_target, _ = Operator.apply("bce_pool", *inputs)
    return bce, pooled, pooled_target


def region_moments(labels: Tensor, probs: Tensor, *, region_size: int, step: int, backend: str = "auto") -> Tensor:
    """Sum products of centered entries over all regions, without materializing the regions.

    A region is an R × R patch, flattened by rows to a vector of d = R² entries. The vectors of all n positions form Y
    (labels) and P (probabilities), d × n each, with the mean over the positions subtracted.

    Args:
        labels: (N, C, h, w) pooled labels.
        probs: (N, C, h, w) pooled probabilities.
        region_size: R.
        step: stride between regions.
        backend: one of `BACKENDS`.

    Returns:
        (N, C, 2d, 2d) float64: [[Y Yᵀ, Y Pᵀ], [P Yᵀ, P Pᵀ]]. Differentiable in probs: with W (d × 2d) the
        gradient of the lower half plus the transposed gradient of the right half, the gradient in P is W [Y; P].
    """
    moments: Tensor = Operator.apply("region_moments", labels, probs, region_size, step, backend)
    return moments


def implementation(backend: str, tensor: Tensor, *, fits_c: bool, fits_triton: bool) -> ModuleType:
    """Return the module to use: the fastest available or the requested one, `plain` for what it does not support.

    Raises:
        ValueError: if the backend is for another device.
    """
    _check_device(backend, tensor)
    if backend == "auto":
        backend = {"cpu": "c", "cuda": "triton"}.get(tensor.device.type, "plain")
    if backend == "c" and fits_c and tensor.numel() > 0 and load_library() is not None:
        return c
    if backend == "triton" and fits_triton:
        return _load_triton() or plain
    return plain


def _check_device(backend: str, tensor: Tensor) -> None:
    if backend == "c" and not tensor.is_cpu:
        raise ValueError(f"backend: 'c' needs preds on a CPU, got {tensor.device}; use backend='auto'")
    # Triton's interpreter accepts CPU tensors
    if backend == "triton" and not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"backend: 'triton' needs preds on a CUDA device, got {tensor.device}; use backend='auto'")


@functools.cache
def _load_triton() -> ModuleType | None:
    try:
        kernels = importlib.import_module("beyondpixel.losses.ops.triton")
        if os.environ.get("TRITON_INTERPRET") != "1":
            # Triton compiles a part of its driver here, or at the first launch, too late to use another backend
            importlib.import_module("triton").runtime.driver.active.get_current_target()
        return kernels
    except (ImportError, RuntimeError, OSError, AssertionError, subprocess.CalledProcessError) as error:
        warnings.warn(
            f"The losses run on their plain PyTorch backend, which gives equal results but is slower, because Triton "
            f"cannot be used ({error}); it comes with PyTorch's CUDA wheels and needs a C compiler. "
            'backend="plain" turns this warning off.',
            stacklevel=2,
        )
        return None


def _pool_implementation(preds: Tensor, options: tuple[Any, ...]) -> ModuleType:
    *_, with_logits, _, backend = options
    fits = with_logits and preds.dtype != torch.float64
    return implementation(backend, preds, fits_c=fits, fits_triton=fits)


def _moments_implementation(probs: Tensor, options: tuple[Any, ...]) -> ModuleType:
    *_, step, backend = options
    single = probs.dtype == torch.float32
    return implementation(backend, probs, fits_c=single and step == 1, fits_triton=single)


def _run(name: str, number: int, choose: Callable[..., ModuleType], *inputs: Any) -> Any:
    """Run an operator with the implementation for the input of that number and the options."""
    return getattr(choose(inputs[number], inputs), name)(*inputs[:-1])


def _fake_bce_pool(preds: Tensor, target: Tensor, pooling: str, kernel_size: int, *_: Any) -> tuple[Tensor, ...]:
    return preds.new_empty((), dtype=torch.float64), *plain.empty_outputs(preds, pooling, kernel_size)


def _fake_region_moments(labels: Tensor, probs: Tensor, region_size: int, *_: Any) -> Tensor:
    return probs.new_empty(*probs.shape[:2], 2 * region_size**2, 2 * region_size**2, dtype=torch.float64)


def _fake_gradient(first: Tensor, second: Tensor, preds: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(preds, memory_format=torch.contiguous_format)


def _save_bce_pool(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    preds, target, *ctx.options = inputs
    _, _, pooled_target, indices = output
    ctx.mark_non_differentiable(pooled_target, indices)
    ctx.set_materialize_grads(False)  # avoids zeros as large as the outputs, half of which have no gradient
    ctx.save_for_backward(preds, target, indices)


def _differentiate_bce_pool(
    ctx: Any, grad_bce: Tensor | None, grad_pooled: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    preds, target, indices = ctx.saved_tensors
    if grad_bce is None:
        grad_bce = preds.new_zeros((), dtype=torch.float64)
    if grad_pooled is None:
        grad_pooled = plain.empty_outputs(preds, *ctx.options[:2])[0].zero_()
    grad = _gradient("bce_pool_backward", grad_bce, grad_pooled, preds, target, indices, *ctx.options)
    return (grad, *[None] * (1 + len(ctx.options)))


def _save_region_moments(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    labels, probs, *ctx.options = inputs
    ctx.save_for_backward(labels, probs)


def _differentiate_region_moments(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    labels, probs = ctx.saved_tensors
    side = grad.shape[-1] // 2
    weights = grad[..., side:, :] + grad[..., side:].mT
    grad = _gradient("region_moments_backward", weights, labels, probs, *ctx.options)
    return (None, grad, *[None] * len(ctx.options))


def _gradient(name: str, *inputs: Any) -> Tensor:
    """Run a backward operator; if a second derivative may follow, the plain one, which autograd can differentiate."""
    if torch.is_grad_enabled():
        gradient: Tensor = getattr(plain, name)(*inputs[:-1])
    else:
        gradient = getattr(torch.ops.beyondpixel, name)(*inputs)
    return gradient


_AUTOGRAD: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "bce_pool": (_save_bce_pool, _differentiate_bce_pool),
    "region_moments": (_save_region_moments, _differentiate_region_moments),
}


class Operator(torch.autograd.Function):
    """An operator and its gradient in the form that `torch.func` requires."""

    generate_vmap_rule = True

    @staticmethod
    @override
    def forward(name: str, *inputs: Any) -> Any:
        return getattr(torch.ops.beyondpixel, name)(*inputs)

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0]
        _AUTOGRAD[ctx.name][0](ctx, inputs[1:], output)

    @staticmethod
    @override
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return (None, *_AUTOGRAD[ctx.name][1](ctx, *grads))


for _name, _number, _choose, _fake in (
    ("bce_pool", 0, _pool_implementation, _fake_bce_pool),
    ("bce_pool_backward", 2, _pool_implementation, _fake_gradient),
    ("region_moments", 1, _moments_implementation, _fake_region_moments),
    ("region_moments_backward", 2, _moments_implementation, _fake_gradient),
):
    _work = functools.partial(_run, _name, _number, _choose)
    torch.library.impl(f"beyondpixel::{_name}", "CompositeExplicitAutograd", _work)
    torch.library.register_fake(f"beyondpixel::{_name}", _fake)
for _name, (_save, _differentiate) in _AUTOGRAD.items():
    torch.library.register_autograd(f"beyondpixel::{_name}", _differentiate, setup_context=_save)
