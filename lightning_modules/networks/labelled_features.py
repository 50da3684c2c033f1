"""Checks of what a memory is updated with."""

import torch
from torch import Tensor


def check_labelled_features(features: Tensor, target: Tensor, memory: Tensor, channels: int) -> None:
    """Raise unless features (N, C, h, w) and target (N, H, W) fit each other and the memory.

    Raises:
        TypeError: for features that are not floating point, or labels that are not integers.
        ValueError: for shapes or devices that do not fit.
    """
    if not features.is_floating_point():
        raise TypeError(f"features: expected a floating-point tensor, got {features.dtype}")
    if features.ndim != 4 or features.shape[1] != channels or 0 in features.shape[2:]:
        raise ValueError(
            f"features: expected the shape (N, {channels}, h, w) as the memory has channels={channels}, "
            f"got {tuple(features.shape)}"
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target: expected integer labels for the shape (N, H, W), got {target.dtype}")
    if target.ndim != 3 or target.shape[0] != features.shape[0]:
        raise ValueError(
            f"target: expected labels of the shape ({features.shape[0]}, H, W), as features are "
            f"{tuple(features.shape)}, got {tuple(target.shape)}"
        )
    for name, tensor in (("features", features), ("target", target)):
        if tensor.device != memory.device:
            raise ValueError(
                f"{name}: expected it on the device of the memory, {memory.device}, got {tensor.device}; "
                "move the memory or the batch with .to(device)"
            )


def label_extremes(target: Tensor, ignore_index: int) -> Tensor:
    """Lowest and highest label that is not void, (2,) int64; void pixels count as 0."""
    if target.numel() == 0:
        return torch.zeros(2, dtype=torch.int64, device=target.device)
    return torch.stack(target.long().masked_fill(target.long() == ignore_index, 0).aminmax())


def check_label_extremes(extremes: Tensor, num_classes: int, ignore_index: int) -> None:
    """Raise a ValueError if a label is neither a class nor void; waits for the device.

    In a distributed run only the processes that have such a label raise.
    """
    for label in extremes.tolist():
        if not 0 <= label < num_classes:
            raise ValueError(
                f"target: expected labels in 0 … {num_classes - 1} or ignore_index {ignore_index}, got the label "
                f"{label}; map it to a class, or set num_classes or ignore_index"
            )


def check_momentum(momentum: float) -> None:
    """Raise a ValueError unless momentum is in [0, 1]."""
    if not 0 <= momentum <= 1:
        raise ValueError(
            f"momentum: expected a number from 0 (keep the memory) to 1 (replace it), got {momentum!r}; "
            "it is the weight of the new batch"
        )


def check_count(name: str, value: int, at_least: int = 1) -> None:
    """Raise a ValueError unless value is an integer of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}: expected an integer of at least {at_least}, got {value!r}")
