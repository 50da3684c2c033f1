"""The checks that every loss shares, and the one mask of void pixels."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from typing_extensions import override


class Truth(ABC):
    """What a target says, in the form that all losses read.

    Attributes:
        shape: (N, H, W).
        valid: (N, H, W) bool, False where the pixel is void; None where the target cannot hold void pixels.
        may_have_void: False where it is known, without waiting for a device, that no pixel is void.
    """

    shape: tuple[int, int, int]
    valid: Tensor | None
    may_have_void: bool

    @abstractmethod
    def replace(
        self, values: Tensor, source: Tensor, images: slice, rows: slice, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`values` with function(source) where the label is 1, for some rows of some images.

        Args:
            values: (B, C, rows, W), may be overwritten.
            source: of the same shape, may be `values`.
            images: of the batch.
            rows: of the maps.
            function: of each value.
        """

    @abstractmethod
    def num_valid(self) -> Tensor:
        """Number of pixels that are not void, float64 scalar."""

    @abstractmethod
    def occupied_images(self) -> Tensor:
        """(N,) bool, True where an image has at least one valid pixel."""

    @abstractmethod
    def check_values(self) -> None:
        """Raise a ValueError if a value is out of range.

        On an accelerator this waits for the device, so losses call it last, when all their kernels are queued, and
        everything before it is written so that a wrong label does no harm.
        """


class LabelTruth(Truth):
    """Integer labels.

    Attributes:
        labels: (N, H, W) int16, the class of each pixel, -1 where it is void.
    """

    labels: Tensor
    valid: Tensor

    def __init__(self, target: Tensor, num_classes: int, ignore_index: int) -> None:
        if target.is_floating_point() or target.is_complex():
            raise TypeError(f"target: expected integer labels for the shape (N, H, W), got {target.dtype}")
        if target.dtype == torch.bool:
            target = target.to(torch.uint8)
        self.shape = (target.shape[0], target.shape[1], target.shape[2])
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.valid = target != ignore_index
        self.may_have_void = target.device.type != "cpu" or not bool(self.valid.all())
        # smaller, and read more than once
        self.labels = target.to(torch.int16).contiguous()
        if self.may_have_void:
            self.labels = self.labels.masked_fill(~self.valid, -1)
            target = torch.where(self.valid, target, 0)
        self._extremes = torch.stack(target.aminmax()) if target.numel() > 0 else None

    @override
    def replace(
        self, values: Tensor, source: Tensor, images: slice, rows: slice, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        # a void pixel is read as class 0, and masked by whoever called
        index = self.labels[images, None, rows].clamp(0, self.num_classes - 1).long()
        return values.scatter_(1, index, function(source.gather(1, index)))

    @override
    def num_valid(self) -> Tensor:
        return self.valid.sum().double()

    @override
    def occupied_images(self) -> Tensor:
        if not self.may_have_void:
            return torch.ones(self.shape[0], dtype=torch.bool, device=self.valid.device)
        return self.valid.flatten(1).any(1)

    @override
    def check_values(self) -> None:
        for label in self._extremes.tolist() if self._extremes is not None else []:
            if not 0 <= label < self.num_classes:
                binary = "; a binary mask is a multi-hot target (N, 1, H, W)" if self.num_classes == 1 else ""
                raise ValueError(
                    f"target: expected labels in 0 … {self.num_classes - 1} or ignore_index {self.ignore_index}, "
                    f"got the label {label}{binary}; map it to a class, or set num_classes or ignore_index"
                )


class MultiHotTruth(Truth):
    """A map of 0 and 1 for each class: several classes, or none, may hold a pixel; no pixel is void.

    Attributes:
        multi_hot: (N, C, H, W).
    """

    valid = None
    may_have_void = False

    def __init__(self, target: Tensor) -> None:
        self.shape = (target.shape[0], target.shape[2], target.shape[3])
        self.multi_hot = target
        self._extremes = None
        if target.numel() > 0 and target.dtype != torch.bool:
            self._extremes = torch.stack(torch.where((target == 0) | (target == 1), 0, target).aminmax())

    @override
    def replace(
        self, values: Tensor, source: Tensor, images: slice, rows: slice, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        return torch.where(self.multi_hot[images, :, rows].bool(), function(source), values)

    @override
    def num_valid(self) -> Tensor:
        return torch.tensor(float(math.prod(self.shape)), dtype=torch.float64, device=self.multi_hot.device)

    @override
    def occupied_images(self) -> Tensor:
        return torch.ones(self.shape[0], dtype=torch.bool, device=self.multi_hot.device)

    @override
    def check_values(self) -> None:
        for value in self._extremes.tolist() if self._extremes is not None else []:
            if value != 0:
                raise ValueError(
                    f"target: expected a multi-hot map of 0 and 1, as target has the shape of preds, "
                    f"got the value {value:g}; integer labels have the shape (N, H, W)"
                )


def read_target(preds: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Truth:
    """Check preds and target against each other and put the target into the form that all losses read.

    Args:
        preds: (N, C, H, W), floating point.
        target: (N, H, W) integer labels, or (N, C, H, W) multi-hot of 0 and 1.
        num_classes: C.
        ignore_index: label of the void pixels, which no loss counts.

    Raises:
        TypeError: if preds is not floating point or integer labels are.
        ValueError: if the shapes do not fit, or (on a CPU; later on an accelerator) a label is out of range.
    """
    if not preds.is_floating_point():
        raise TypeError(f"preds: expected a floating-point tensor of scores, got {preds.dtype}")
    if preds.ndim != 4 or preds.shape[1] != num_classes:
        raise ValueError(
            f"preds: expected the shape (N, {num_classes}, H, W), got {tuple(preds.shape)} "
            f"with target {tuple(target.shape)}; num_classes is {num_classes}"
        )
    if target.device != preds.device:
        raise ValueError(f"target: expected it on the device of preds, {preds.device}, got {target.device}")
    truth: Truth
    if target.shape == preds.shape:
        truth = MultiHotTruth(target)
    elif target.shape == (preds.shape[0], *preds.shape[2:]):
        truth = LabelTruth(target, num_classes, ignore_index)
    else:
        raise ValueError(
            f"target: expected integer labels (N, H, W) or a multi-hot map (N, C, H, W) that fit preds "
            f"{tuple(preds.shape)}, got {tuple(target.shape)}; resize the scores to the size of the labels first"
        )
    if preds.device.type == "cpu":
        truth.check_values()
    return truth


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise a ValueError that lists the valid names."""
    valid = list(choices)
    if value not in valid:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, valid))}, got {value!r}")


def check_positive_int(name: str, value: object) -> None:
    """Raise a ValueError unless value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise a ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")


def check_probs(preds: Tensor) -> None:
    """Raise a ValueError if preds, said to be probabilities, leave [0, 1]; NaN passes."""
    if preds.numel() > 0 and bool(((preds < 0) | (preds > 1)).any()):
        low, high = preds.detach().aminmax()
        raise ValueError(
            f"preds: expected probabilities in [0, 1] as with_logits is False, got values from {low.item():g} to "
            f"{high.item():g}; apply a sigmoid or softmax first, or leave with_logits=True"
        )
