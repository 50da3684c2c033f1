"""The target in the form that every loss reads, and the checks that every loss shares.

`read_target` checks a batch and returns its target as int16: (N, H, W) classes with -1 where the pixel is void, or
(N, C, H, W) multi-hot 0 and 1, in which no pixel is void. The other functions read that form:

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
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses.ops.target import check_target


def read_target(
    preds: Tensor, target: Tensor, *, ignore_index: int, num_classes: int | None = None, with_logits: bool = True
) -> Tensor:
    """Check preds and target against each other, and the values of both.

    Args:
        preds: (N, C, H, W), floating point.
        target: (N, H, W) integer labels, or (N, C, H, W) multi-hot of 0 and 1.
        ignore_index: label of the void pixels.
        num_classes: C, if it is known.
        with_logits: False if preds are probabilities, which are then checked too.

    Returns:
        int16, (N, H, W) with -1 where void or (N, C, H, W).

    Raises:
        TypeError: if preds are not floating point, or labels not integer.
        ValueError: if shapes or devices do not fit, or a value is out of range. On an accelerator the error about a
            value is raised by the next step, or by `compute()`.
    """
    if not preds.is_floating_point():
        raise TypeError(f"preds: expected floating-point logits or probabilities, got {preds.dtype}; use preds.float()")
    if preds.ndim != 4 or (num_classes is not None and preds.shape[1] != num_classes):
        raise ValueError(
            f"preds: expected the shape (N, {num_classes or 'C'}, H, W), got {tuple(preds.shape)} with target "
            f"{tuple(target.shape)}; num_classes is {num_classes}"
        )
    if target.device != preds.device:
        raise ValueError(f"target: expected it on the device of preds, {preds.device}, got {target.device}")
    if target.ndim == 3 and target.shape == (preds.shape[0], *preds.shape[2:]):
        if target.is_floating_point() or target.is_complex():
            raise TypeError(f"target: expected integer labels for the shape (N, H, W), got {target.dtype}")
    elif target.shape != preds.shape:
        raise ValueError(
            f"target: expected integer labels (N, H, W) or a multi-hot target (N, C, H, W) that fit preds "
            f"{tuple(preds.shape)}, got {tuple(target.shape)}; resize preds to the size of the labels first"
        )
    return check_target(target, None if with_logits else preds.detach(), preds.shape[1], ignore_index)


def valid_mask(target: Tensor) -> Tensor:
    """(N, H, W) bool, False where a pixel is void, from what `read_target` returned."""
    return target >= 0 if target.ndim == 3 else torch.ones_like(target[:, 0], dtype=torch.bool)


def num_valid(target: Tensor) -> Tensor:
    """Number of pixels that are not void, float64 scalar."""
    if target.ndim == 3:
        return (target >= 0).sum().double()
    return target.new_full((), target[:, 0].numel(), dtype=torch.float64)


def multi_hot(target: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, C, H, W) of 0 and 1 from what `read_target` returned, 0 where void."""
    if target.ndim == 4:
        return target.to(dtype)
    classes = torch.arange(num_classes, dtype=target.dtype, device=target.device)
    return (target[:, None] == classes[:, None, None]).to(dtype)


def resize_target(target: Tensor, size: tuple[int, int]) -> Tensor:
    """The nearest pixels, (N, h, w) or (N, C, h, w)."""
    pixels = target.float() if target.ndim == 4 else target[:, None].float()
    small = F.interpolate(pixels, size, mode="nearest").to(target.dtype)
    return small if target.ndim == 4 else small[:, 0]


def without_void_gradient(preds: Tensor, target: Tensor) -> Tensor:
    """The same values, whose gradient ends at void pixels: interpolation would carry it there from their neighbours."""
    return torch.where(valid_mask(target)[:, None], preds, preds.detach())


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise a ValueError that lists the valid names."""
    valid = list(choices)
    if value not in valid:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, valid))}, got {value!r}")


def check_positive_int(name: str, value: object) -> None:
    """Raise a ValueError unless value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")


def check_range(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise a ValueError unless low <= value <= high; NaN is out of every range."""
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")
