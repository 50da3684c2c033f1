"""Base of the metrics that sum pixel counts, and functions that count."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class CountMetric(Metric):
    """A metric whose state is counts: `update` adds to them, `compute` sums them over processes and divides once.

    `compute` returns a dict from each logged name to a float64 scalar in 0..1, or NaN where nothing was counted, so
    metrics can be used alone or together in a `torchmetrics.MetricCollection`.

    Args:
        num_classes: C, at least 2.
        ignore_index: target label of pixels that are excluded.
        class_names: C distinct names; the class numbers if None.
        shape: shape of the counts.
        kwargs: further arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: if `class_names` are not C distinct names.
    """

    counts: Tensor

    full_state_update = False

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        *,
        shape: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        names = [str(index) for index in range(num_classes)] if class_names is None else list(class_names)
        if len(names) != num_classes:
            raise ValueError(f"class_names must hold num_classes={num_classes} names, got {len(names)}: {names}")
        if len(set(names)) != num_classes:
            raise ValueError(f"class_names must be distinct, got {names}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names = names
        self.add_state("counts", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")
        # MetricCollection makes metrics with equal states share them, from the first batch on; NaN equals nothing
        self.add_state("_unlike_others", torch.tensor(torch.nan), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            preds: (N, H, W) integer classes.
            target: (N, H, W) integer labels: 0..C-1 or `ignore_index`.

        Raises:
            TypeError: if a tensor is not of integers.
            ValueError: if shapes differ or a label is out of range.
        """
        preds, target = checked_labels(preds, target, num_classes=self.num_classes, ignore_index=self.ignore_index)
        # not in place, which fails for counts that were made in inference mode
        self.counts = self.counts + self.count(preds, target).to(self.counts.device)

    def count(self, preds: Tensor, target: Tensor) -> Tensor:
        """Count a valid batch of int64 labels; the counts are int64, too."""
        raise NotImplementedError

    def named(self, name: str, per_class: Tensor) -> dict[str, Tensor]:
        """Map `<name>/<class>` to each of (C,) values."""
        return {f"{name}/{label}": value for label, value in zip(self.class_names, per_class, strict=True)}


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient of counts in float64; NaN where the denominator is 0.

    Example:
        >>> ratio(torch.tensor([1, 0]), torch.tensor([4, 0]))
        tensor([0.2500,    nan], dtype=torch.float64)
    """
    return numerator.double() / denominator.double()


def checked_labels(preds: Tensor, target: Tensor, *, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Check a batch and return it as int64.

    Args:
        preds: (N, H, W) integer classes.
        target: (N, H, W) integer labels.
        num_classes: C.
        ignore_index: label of void pixels.

    Raises:
        TypeError: if a tensor is not of integers.
        ValueError: if shapes differ, or if a label, or a class predicted where there is one, is out of range.
    """
    for name, labels, remedy in (("preds", preds, "logits.argmax(dim=1)"), ("target", target, "target.long()")):
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"{name} must be integers (N, H, W), got {labels.dtype}; use {remedy}")
    if preds.shape != target.shape:
        raise ValueError(
            f"preds and target must have one shape, (N, H, W), got {tuple(preds.shape)} and {tuple(target.shape)}"
        )
    # compared in a narrow dtype such as uint8, num_classes and ignore_index could wrap around
    preds, target = preds.long(), target.long()
    valid = target != ignore_index
    wrong = valid & ((target < 0) | (target >= num_classes))
    wrong_preds = valid & ((preds < 0) | (preds >= num_classes))
    if not (wrong | wrong_preds).any():  # the only synchronization with the device
        return preds, target
    if wrong.any():
        raise ValueError(
            f"target has the labels {sorted(set(target[wrong].tolist()))}, expected 0..{num_classes - 1} or "
            f"ignore_index={ignore_index}"
        )
    raise ValueError(
        f"preds have the classes {sorted(set(preds[wrong_preds].tolist()))} where the target is labeled, expected "
        f"0..{num_classes - 1}"
    )


def pixels_per_class(labels: Tensor, where: Tensor, num_classes: int) -> Tensor:
    """Count the selected pixels of each class in each image: (N, H, W) labels to (N, C) int64.

    Example:
        >>> labels = torch.tensor([[[0, 2, 2]], [[1, 0, 0]]])
        >>> pixels_per_class(labels, where=labels != 0, num_classes=3).tolist()
        [[0, 0, 2], [0, 1, 0]]
    """
    images = len(labels)
    offsets = num_classes * torch.arange(images, device=labels.device)[:, None, None]
    return count_codes(labels + offsets, where, (images, num_classes))


def count_codes(codes: Tensor, where: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Count how often each code, a flat (row-major) index into an array of the given shape, is selected."""
    bins = math.prod(shape)
    # an extra bin for unselected pixels: indexing with a mask takes far longer than counting all of them
    return torch.bincount(codes.where(where, bins).flatten(), minlength=bins + 1)[:bins].view(shape)
