"""The operator that checks the values of a batch: labels, multi-hot targets and probabilities.

It is an operator so that the check also runs, with the same error, inside a graph of `torch.compile`. On a CPU it
raises at once. On an accelerator that would wait for the device, so the extremes are copied to the host in the
background and looked at by the next call, or by `raise_pending`.
"""

from typing import Any

import torch
from torch import Tensor

torch.library.define(
    "beyondpixel::check_target", "(Tensor target, Tensor? probs, int num_classes, int ignore_index) -> Tensor"
)

# copies on their way to the host: (values, event that says when they are there, how to read them)
_pending: list[tuple[Tensor, Any, tuple[bool, int, int]]] = []


def check_target(target: Tensor, probs: Tensor | None, num_classes: int, ignore_index: int) -> Tensor:
    """Compact form of a target whose values are in range.

    Args:
        target: (N, H, W) integer labels or (N, C, H, W) multi-hot.
        probs: probabilities to check as well, if any.
        num_classes: C.
        ignore_index: label of void pixels.

    Returns:
        int16 of the shape of target: classes with -1 where void, or 0 and 1. On an accelerator, labels out of range
        are void until the error is raised.

    Raises:
        ValueError: if a value is out of range.
    """
    result: Tensor = torch.ops.beyondpixel.check_target(target, probs, num_classes, ignore_index)
    return result


@torch.library.impl("beyondpixel::check_target", "CompositeExplicitAutograd")
def _check_target(target: Tensor, probs: Tensor | None, num_classes: int, ignore_index: int) -> Tensor:
    raise_pending(wait=False)
    if target.dtype == torch.bool:
        target = target.to(torch.uint8)
    if target.ndim == 4:
        # 0 stands for what is right, so that the extremes show what is not
        wrong = target.masked_fill((target == 0) | (target == 1), 0)
        compact = (target == 1).to(torch.int16)
    else:
        void = target == ignore_index
        wrong = target.masked_fill(void, 0)
        compact = target.to(torch.int16).masked_fill_(void, -1)
        if target.device.type != "cpu":
            compact.masked_fill_((target < 0) | (target >= num_classes), -1)
    extremes = [_extremes(wrong)]
    if probs is not None:
        extremes.append(_extremes(probs))
    values = torch.cat(extremes)
    options = (target.ndim == 4, num_classes, ignore_index)
    if target.device.type == "cpu":
        _raise_if_wrong(values, options)
    elif not (target.is_cuda and torch.cuda.is_current_stream_capturing()):
        event = torch.Event(target.device)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
        event.record()
        _pending.append((host, event, options))
    return compact.contiguous()


def _fake_check_target(target: Tensor, probs: Tensor | None, num_classes: int, ignore_index: int) -> Tensor:
    return target.new_empty(target.shape, dtype=torch.int16)


torch.library.register_fake("beyondpixel::check_target", _fake_check_target)


def raise_pending(*, wait: bool = True) -> None:
    """Raise the error of an earlier batch on an accelerator, if it had one.

    Args:
        wait: whether to wait for batches that the device has not reached yet.

    Raises:
        ValueError: as `check_target`.
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
