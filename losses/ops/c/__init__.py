"""The operators in C, for float32 and half-precision logits on a CPU."""

import ctypes
import mmap
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from beyondpixel.losses.ops import plain
from beyondpixel.losses.ops.c.library import load_library

# from this size on, C libraries return memory to the operating system when it is released
_REUSED_BYTES = 2**25
_last: list[Any] = [b"", None]  # memory of the last such gradient, and a reference to it that does not keep it alive


def bce_pool(
    preds: Tensor, target: Tensor, pooling: str, kernel_size: int, with_logits: bool, with_bce: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `operators.bce_pool`; for logits only."""
    logits = preds.float().contiguous()
    bce = torch.zeros(preds.shape[:2], dtype=torch.float64)
    pooled, pooled_target, indices = plain.empty_outputs(preds, pooling, kernel_size)
    _call(
        "pool_forward",
        *(logits, target, pooled, pooled_target, indices, bce if with_bce else None),
        *(int(target.ndim == 4), *_sizes(preds, pooled), kernel_size),
    )
    return bce.sum(), pooled, pooled_target, indices


def bce_pool_backward(
    grad_bce: Tensor,
    grad_pooled: Tensor,
    preds: Tensor,
    target: Tensor,
    indices: Tensor,
    pooling: str,
    kernel_size: int,
    with_logits: bool,
    with_bce: bool,
) -> Tensor:
    """See `operators.bce_pool`."""
    logits, grad_pooled = preds.float().contiguous(), grad_pooled.contiguous()
    grad = _empty_gradient(logits.numel()).view(logits.shape)
    _call(
        "pool_backward",
        *(logits, target, indices, grad_pooled, grad, ctypes.c_float(float(grad_bce) if with_bce else 0.0)),
        *(int(target.ndim == 4), *_sizes(preds, grad_pooled), kernel_size),
    )
    return grad.to(preds.dtype)


def region_moments(labels: Tensor, probs: Tensor, region_size: int, step: int) -> Tensor:
    """See `operators.region_moments`; for step 1."""
    labels, probs = labels.contiguous(), probs.contiguous()
    moments = probs.new_empty(*probs.shape[:2], 2 * region_size**2, 2 * region_size**2, dtype=torch.float64)
    _call("regions_moments", labels, probs, moments, *probs.flatten(0, 1).shape, region_size)
    return moments


def region_moments_backward(weights: Tensor, labels: Tensor, probs: Tensor, region_size: int, step: int) -> Tensor:
    """See `operators.region_moments`; for step 1."""
    weights, labels, probs = weights.contiguous(), labels.contiguous(), probs.contiguous()
    grad = torch.empty_like(probs)
    _call("regions_backward", weights, labels, probs, grad, *probs.flatten(0, 1).shape, region_size)
    return grad


def _empty_gradient(size: int) -> Tensor:
    """Return uninitialized float32 memory: that of the last gradient if it had this size and is unused.

    The operating system clears large new memory at its first use, which takes longer than computing the gradient.
    """
    if 4 * size < _REUSED_BYTES:
        return torch.empty(size)
    memory, gradient = _last
    if len(memory) != 4 * size or not gradient.expired():
        memory = mmap.mmap(-1, 4 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    empty = torch.frombuffer(memory, dtype=torch.float32)
    _last[:] = memory, StorageWeakRef(empty.untyped_storage())  # type: ignore[no-untyped-call]
    return empty


def _sizes(preds: Tensor, pooled: Tensor) -> tuple[int, ...]:
    return (*preds.shape, *(pooled.shape[2:] if pooled.ndim == 4 else (0, 0)))


def _call(function: str, *arguments: Any) -> None:
    """Call a kernel with tensors as pointers (NULL if empty), 64-bit integers, and the number of threads at the end.

    Raises:
        MemoryError: if there is not enough memory for the kernel's buffers.
    """
    converted: list[Any] = []
    for argument in (*arguments, torch.get_num_threads()):
        if isinstance(argument, Tensor):
            converted.append(ctypes.c_void_p(argument.data_ptr() if argument.numel() > 0 else None))
        elif isinstance(argument, int):
            converted.append(ctypes.c_int64(argument))
        else:
            converted.append(argument)
    if getattr(load_library(), function)(*converted) != 0:
        raise MemoryError(f"{function}: not enough memory for its buffers")
