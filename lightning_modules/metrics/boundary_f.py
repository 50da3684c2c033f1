"""Boundary F-score within a tolerance.

Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013, with their
tolerance of 0.75 % of the image's diagonal. They average over images; here, as for every metric of this package, counts
are summed over the whole set first, so that an image with a long boundary weighs more than one with a few pixels of it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from beyondpixel.lightning_modules.metrics.counts import CountMetric, pixels_per_class, ratio
from beyondpixel.lightning_modules.metrics.neighborhoods import dilate_bits

_BITS = 31  # of int32, without its sign


def class_boundaries(labels: Tensor) -> Tensor:
    """Pixels that have another label above, below, left or right of them: (N, H, W) integers to bool.

    Both sides of an edge are boundary, each of its own class. The image's border is none.

    Example:
        >>> class_boundaries(torch.tensor([[[3, 3, 3, 5, 5]]])).int().tolist()
        [[[0, 0, 1, 1, 0]]]
    """
    boundary = torch.zeros_like(labels, dtype=torch.bool)
    vertical = labels[:, 1:] != labels[:, :-1]
    boundary[:, 1:] |= vertical
    boundary[:, :-1] |= vertical
    horizontal = labels[:, :, 1:] != labels[:, :, :-1]
    boundary[:, :, 1:] |= horizontal
    boundary[:, :, :-1] |= horizontal
    return boundary


class BoundaryF(CountMetric):
    """F-score of the classes' boundaries over the whole set.

    Precision of a class is the share of its predicted boundary pixels with a true boundary pixel of the same class at
    most the tolerance away (Euclidean, between centers); recall the share of its true ones with a predicted one.
    F = 2PR / (P + R), and 0 where only one of target and prediction has a boundary. Boundary pixels are those of
    :func:`class_boundaries`, where void is a label of its own, in the prediction too; void pixels themselves are none.

    Args:
        num_classes: C, at least 2.
        ignore_index: target label of pixels that are excluded.
        class_names: C distinct names; the class numbers if None.
        tolerance: largest distance of two boundaries that match.
        unit: whether the tolerance is a fraction of the image's "diagonal" or in "pixels".
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if ``tolerance`` is negative or ``unit`` unknown.

    Example:
        >>> metric = BoundaryF(2, tolerance=1, unit="pixels")
        >>> metric.update(torch.tensor([[[0, 0, 0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1, 1, 1]]]))
        >>> metric.compute()["boundary_F"].item()
        1.0
    """

    true: Tensor
    true_found: Tensor
    predicted: Tensor
    predicted_right: Tensor

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        *,
        tolerance: float = 0.0075,
        unit: Literal["diagonal", "pixels"] = "diagonal",
        **kwargs: Any,
    ) -> None:
        if tolerance < 0:
            raise ValueError(f"tolerance must be 0 or more, got {tolerance}")
        if unit not in ("diagonal", "pixels"):
            raise ValueError(f"unit must be 'diagonal' or 'pixels', got {unit!r}")
        states = dict.fromkeys(("true", "true_found", "predicted", "predicted_right"), (num_classes,))
        super().__init__(num_classes, ignore_index, class_names, states=states, **kwargs)
        self.tolerance = tolerance
        self.unit = unit

    def count(self, preds: Tensor, target: Tensor) -> None:
        """Add the boundary pixels of a batch."""
        height, width = target.shape[-2:]
        radius = self.tolerance * ((height**2 + width**2) ** 0.5 if self.unit == "diagonal" else 1.0)
        valid = target != self.ignore_index
        preds, target = preds.where(valid, self.num_classes), target.where(valid, self.num_classes)
        in_preds, in_target = class_boundaries(preds) & valid, class_boundaries(target) & valid
        found, right = torch.zeros_like(valid), torch.zeros_like(valid)
        for first in range(0, self.num_classes, _BITS):
            found |= in_target & _within(radius, target, _bits(preds, in_preds, first), first)
            right |= in_preds & _within(radius, preds, _bits(target, in_target, first), first)
        self.true += pixels_per_class(target, in_target, self.num_classes).sum(dim=0)
        self.true_found += pixels_per_class(target, found, self.num_classes).sum(dim=0)
        self.predicted += pixels_per_class(preds, in_preds, self.num_classes).sum(dim=0)
        self.predicted_right += pixels_per_class(preds, right, self.num_classes).sum(dim=0)

    def compute(self) -> dict[str, Tensor]:
        """``boundary_F``, the mean over the classes that have boundaries, and ``boundary_F/<class>``."""
        precision = ratio(self.predicted_right, self.predicted).nan_to_num(0.0)
        recall = ratio(self.true_found, self.true).nan_to_num(0.0)
        score = (2 * precision * recall / (precision + recall)).nan_to_num(0.0)
        score = score.where(self.true + self.predicted > 0, float("nan"))
        return {"boundary_F": score.nanmean(), **self.named("boundary_F", score)}


def _bits(labels: Tensor, boundary: Tensor, first: int) -> Tensor:
    """A bit for each of the classes from ``first`` on, set where a boundary pixel of the class is."""
    bit = labels.int() - first
    known = boundary & (bit >= 0) & (bit < _BITS)
    return torch.ones_like(bit).bitwise_left_shift(bit.where(known, 0)).where(known, 0)


def _within(radius: float, labels: Tensor, bits: Tensor, first: int) -> Tensor:
    """Whether a pixel's own class has its bit set within the radius."""
    bit = labels.int() - first
    known = (bit >= 0) & (bit < _BITS)
    return known & (dilate_bits(bits, radius).bitwise_right_shift(bit.where(known, 0)) & 1).bool()
