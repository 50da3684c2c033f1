"""Conversion of targets to the format that all losses use, and the operator that checks the values of a batch.

`read_target` returns the target as int16: (N, H, W) classes with -1 where the pixel is void, or (N, C, H, W) multi-hot
0 and 1, in which no pixel is void. The other functions take that format:

>>> import torch
>>> target = read_target(torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, 255]]]), ignore_index=255)
>>> target
tensor([[[ 0,  1, -1]]], dtype=torch.int16)
>>> valid_mask(target)
tensor([[[ True,  True, False]]])
>>> multi_hot(target, num_classes=2)
tensor([[[[1., 0., 0.]],
<BLANKLINE>
         [[0., 1., 0.]]]])

Values are checked by an operator, so that the check also runs, with the same error, inside a graph of `torch.compile`.
On a CPU it raises at once. On an accelerator that would wait for the device, so the extremes are copied to the host
asynchronously and checked by the next call, or by `raise_pending`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

torch.library.define(
    "beyondpixel::check_target", "(Tensor target, Tensor? probs, int num_classes, int ignore_index) -> Tensor"
)

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_CLASSES = torch.iinfo(torch.int16).max
# asynchronous copies to the host: (values, event of their completion, options of the check)
_pending: list[tuple[Tensor, Any, tuple[bool, int, int]]] = []


def without_autocast(preds: Tensor, target: Tensor) -> torch.autocast:
    """Return a context without autocast: half precision is not enough for sums over pixels and for linear algebra.

    Raises:
        TypeError: if preds or target is not a tensor.
    """
    for name, value in (("preds", preds), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}; use torch.as_tensor({name})")
    return torch.autocast(preds.device.type, enabled=False)


def read_target(
    preds: Tensor, target: Tensor, *, ignore_index: int, num_classes: int | None = None, with_logits: bool = True
) -> Tensor:
    """Check that preds and target match, check the values of both, and convert the target.

    Args:
        preds: (N, C, H, W), floating point.
        target: (N, H, W) integer labels, or (N, C, H, W) multi-hot of 0 and 1.
        ignore_index: label of the void pixels.
        num_classes: C, if known.
        with_logits: False if preds are probabilities, which are then checked too.

    Returns:
        int16, (N, H, W) with -1 where void or (N, C, H, W).

    Raises:
        TypeError: if preds are not floating point of 16, 32 or 64 bits, or labels not integer.
        ValueError: if shapes or devices do not fit, or a value is out of range. On an accelerator the error about a
            value is raised by the next step, or by `compute()`; until then labels out of range are void.
    """
    _check_preds(preds, target, num_classes)
    _check_shape(preds, target)
    probs = None if with_logits else preds.detach()
    compact: Tensor = torch.ops.beyondpixel.check_target(target, probs, preds.shape[1], ignore_index)
    return compact


def _check_preds(preds: Tensor, target: Tensor, num_classes: int | None) -> None:
    if preds.dtype not in _DTYPES:
        raise TypeError(f"preds: expected floating-point logits or probabilities, got {preds.dtype}; use preds.float()")
    if preds.ndim == 4 and preds.shape[1] > _MAX_CLASSES:
        raise ValueError(f"preds: expected at most {_MAX_CLASSES} classes, got {preds.shape[1]}")
    if preds.ndim != 4 or (num_classes is not None and preds.shape[1] != num_classes):
        raise ValueError(
            f"preds: expected the shape (N, {num_classes or 'C'}, H, W), got {tuple(preds.shape)} with target "
            f"{tuple(target.shape)}; num_classes is {num_classes}"
        )


def _check_shape(preds: Tensor, target: Tensor) -> None:
    if target.device != preds.device:
        raise ValueError(f"target: expected a tensor on the device of preds, {preds.device}, got {target.device}")
    if target.ndim == 3 and target.shape == (preds.shape[0], *preds.shape[2:]):
        if target.is_floating_point() or target.is_complex():
            raise TypeError(f"target: expected integer labels for the shape (N, H, W), got {target.dtype}")
    elif target.shape != preds.shape:
        raise ValueError(
            f"target: expected integer labels (N, H, W) or a multi-hot target (N, C, H, W) that fit preds "
            f"{tuple(preds.shape)}, got {tuple(target.shape)}; resize preds to the size of the labels first"
        )


def valid_mask(target: Tensor) -> Tensor:
    """Return (N, H, W) bool, False where a pixel is void, for a target from `read_target`."""
    return target >= 0 if target.ndim == 3 else torch.ones_like(target[:, 0], dtype=torch.bool)


def has_valid(target: Tensor) -> Tensor:
    """Return (N,) bool, whether an image has a pixel that is not void, for a target from `read_target`."""
    return target.flatten(1).amax(1) >= 0  # many times faster than `any` of the mask


def num_valid(target: Tensor) -> Tensor:
    """Count the pixels that are not void, float64 scalar, for a target from `read_target`."""
    if target.ndim == 3:
        return (target + 1).count_nonzero().double()  # several times faster than the sum of a mask
    return target.new_full((), target[:, 0].numel(), dtype=torch.float64)


def multi_hot(target: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert a target from `read_target` to (N, C, H, W) of 0 and 1, 0 where void."""
    if target.ndim == 4:
        return target.to(dtype)
    classes = torch.arange(num_classes, dtype=target.dtype, device=target.device)
    return (target[:, None] == classes[:, None, None]).to(dtype)


def resize_target(target: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a target from `read_target` to the nearest pixels, (N, h, w) or (N, C, h, w)."""
    pixels = target.float() if target.ndim == 4 else target[:, None].float()
    small = F.interpolate(pixels, size, mode="nearest").to(target.dtype)
    return small if target.ndim == 4 else small[:, 0]


def without_void_gradient(preds: Tensor, target: Tensor) -> Tensor:
    """Stop the gradient at void pixels, which they would get from their neighbors through interpolation."""
    return torch.where(valid_mask(target)[:, None], preds, preds.detach())


def _check_target(target: Tensor, probs: Tensor | None, num_classes: int, ignore_index: int) -> Tensor:
    # the current device may be another one, here and where the event is recorded
    with torch.cuda.device_of(target):  # type: ignore[no-untyped-call]
        capturing = target.is_cuda and torch.cuda.is_current_stream_capturing()
    if not capturing:
        raise_pending(wait=False)
    if target.dtype == torch.bool:
        target = target.to(torch.uint8)
    if target.ndim == 4:
        # valid values are replaced by 0, so that the extremes show invalid ones
        extremes = _extremes(target.masked_fill((target == 0) | (target == 1), 0))
        compact = (target == 1).to(torch.int16)
    else:
        if target.dtype != torch.int32:
            target = target.long()  # in a narrow dtype, ignore_index would wrap around
        compact, extremes = _compact_labels(target, ignore_index)
        if target.device.type != "cpu":
            compact.masked_fill_((target < 0) | (target >= num_classes), -1)
    values = extremes if probs is None else torch.cat([extremes, _extremes(probs)])
    options = (target.ndim == 4, num_classes, ignore_index)
    if target.device.type == "cpu":
        _raise_if_wrong(values, options)
    elif not capturing:
        event = torch.Event(target.device)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
        event.record(torch.accelerator.current_stream(target.device))
        _pending.append((host, event, options))
    return compact.contiguous()


def _compact_labels(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Convert int32 or int64 labels to int16, -1 where void; return the extremes of those that are not void, too."""
    limits = torch.iinfo(torch.int16)
    if not limits.min <= ignore_index <= limits.max:
        void = target == ignore_index
        return target.to(torch.int16).masked_fill_(void, -1), _extremes(target.masked_fill(void, 0))
    # int16 is a quarter of the memory; labels that do not fit wrap around, but are in the extremes of all
    compact, of_all = target.to(torch.int16), _extremes(target)
    labeled = compact.clone().ne_(ignore_index)  # 0 where void; arithmetic in int16 is several times faster than masks
    compact *= labeled
    extremes = _extremes(compact)
    fit = of_all == of_all.clamp(limits.min, limits.max)
    return compact.add_(labeled).sub_(1), extremes.where(fit.all(), of_all.masked_fill(fit, 0))


def _fake_check_target(target: Tensor, probs: Tensor | None, num_classes: int, ignore_index: int) -> Tensor:
    return target.new_empty(target.shape, dtype=torch.int16)


torch.library.impl("beyondpixel::check_target", "CompositeExplicitAutograd", _check_target)
torch.library.register_fake("beyondpixel::check_target", _fake_check_target)


def raise_pending(*, wait: bool = True) -> None:
    """Raise the error of an earlier batch on an accelerator, if there was one.

    Args:
        wait: whether to wait for batches that the device has not reached yet.

    Raises:
        ValueError: as in `read_target`.
    """
    while _pending and (wait or _pending[0][1].query()):
        values, event, options = _pending.pop(0)
        event.synchronize()
        _raise_if_wrong(values, options)


def _extremes(values: Tensor) -> Tensor:
    if values.numel() == 0:
        return torch.zeros(2, dtype=torch.float64, device=values.device)
    return torch.stack(torch.aminmax(values)).double()


def _raise_if_wrong(values: Tensor, options: tuple[bool, int, int]) -> None:
    multi_hot, num_classes, ignore_index = options
    for value in values[:2].tolist():
        if multi_hot and value != 0:
            raise ValueError(
                f"target: expected a multi-hot target of 0 and 1, as target has the shape of preds, "
                f"got the value {value:g}; integer labels have the shape (N, H, W)"
            )
        if not multi_hot and not 0 <= value < num_classes:
            binary = "; a binary mask is a multi-hot target (N, 1, H, W)" if num_classes == 1 else ""
            raise ValueError(
                f"target: expected labels in 0 … {num_classes - 1} or ignore_index {ignore_index}, "
                f"got the label {value:.0f}{binary}; map it to a class, or set num_classes or ignore_index"
            )
    probs = values[2:].tolist()
    if any(value < 0 or value > 1 for value in probs):
        raise ValueError(
            f"preds: expected probabilities in [0, 1] as with_logits is False, got values from {probs[0]:g} to "
            f"{probs[1]:g}; apply a sigmoid or softmax first, or leave with_logits=True"
        )
