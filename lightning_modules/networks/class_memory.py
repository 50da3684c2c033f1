"""Base of the memories that are updated with labeled features."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from beyondpixel.losses.functional.arguments import check_positive_int


class ClassMemory(nn.Module):
    """Base of memories with a state per class: buffers, input checks and storage of updates.

    If torch.distributed is initialized, `update` must be called by all processes together, each with its own batch,
    even if that has no valid pixels. Pixel sums are added over the processes (memories are not averaged), so n
    processes get the same memory as one process with the concatenated batch. Void pixels, classes absent from all
    batches and batches with a non-finite feature change nothing. Moved to half precision, the memory stays float32.

    Args:
        num_classes: K.
        channels: C of the features.
        slots: S, representations per class.

    Attributes:
        seen: buffer (K, S) bool, which slots are filled.

    Raises:
        ValueError: for a number below 1.
    """

    memory: Tensor
    seen: Tensor

    def __init__(self, num_classes: int, channels: int, slots: int = 1) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("channels", channels), ("slots", slots)):
            check_positive_int(name, value)
        self.num_classes, self.channels, self.slots = num_classes, channels, slots
        self.register_buffer("seen", torch.zeros(num_classes, slots, dtype=torch.bool))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            # half precision would round away the small updates late in training
            return tensor.float().to(found.device) if found.dtype in (torch.float16, torch.bfloat16) else found

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]

    def check_batch(self, features: Tensor, target: Tensor, momentum: float) -> None:
        """Raise unless features (N, C, h, w), target (N, H, W) and momentum match each other and the memory.

        Raises:
            TypeError: for features that are not floating point, or labels that are not integers.
            ValueError: for shapes or devices that do not match, or a momentum out of range.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(
                f"momentum: expected a number from 0 (keep the memory) to 1 (replace it), got {momentum!r}; "
                "it is the weight of the new batch"
            )
        self._check_features(features)
        _check_target(target, features)
        for name, tensor in (("features", features), ("target", target)):
            if tensor.device != self.memory.device:
                raise ValueError(
                    f"{name}: expected it on the device of the memory, {self.memory.device}, got {tensor.device}; "
                    "move the memory or the batch with .to(device)"
                )

    def _check_features(self, features: Tensor) -> None:
        if not features.is_floating_point():
            raise TypeError(f"features: expected a floating-point tensor, got {features.dtype}")
        if features.ndim != 4 or features.shape[1] != self.channels or 0 in features.shape[2:]:
            raise ValueError(
                f"features: expected the shape (N, {self.channels}, h, w) as the memory has channels={self.channels}, "
                f"got {tuple(features.shape)}"
            )

    def write(self, memory: Tensor, seen: Tensor, target: Tensor, ignore_index: int) -> None:
        """Store an update, unless the target contains a label that is neither a class nor void.

        Call it last, as the check synchronizes with the device, and after the collective calls, so that no process
        hangs in them. Only processes with such a label raise.

        Raises:
            ValueError: if there is such a label; the memory is then unchanged.
        """
        labels = target.long()
        labels = labels.masked_fill(labels == ignore_index, 0)
        for label in torch.stack(labels.aminmax()).tolist() if labels.numel() else ():
            if not 0 <= label < self.num_classes:
                raise ValueError(
                    f"target: expected labels in 0 … {self.num_classes - 1} or ignore_index {ignore_index}, got the "
                    f"label {label}; map it to a class, or set num_classes or ignore_index"
                )
        self.memory.copy_(memory)
        self.seen.copy_(seen)


def _check_target(target: Tensor, features: Tensor) -> None:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target: expected integer labels for the shape (N, H, W), got {target.dtype}")
    if target.ndim != 3 or target.shape[0] != features.shape[0]:
        raise ValueError(
            f"target: expected labels of the shape ({features.shape[0]}, H, W), as features are "
            f"{tuple(features.shape)}, got {tuple(target.shape)}"
        )
