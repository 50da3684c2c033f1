"""Boundary F-score: are a class's boundaries where they should be, within a tolerance?

Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013, with their
tolerance of 0.75 % of the image's diagonal. They average over images; here, as for every score of this package, counts
are summed over the whole set first, so that an image with a long boundary counts more than one with a few pixels of it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from beyondpixel.lightning_modules.metrics.counting import CountingScore, ratio
from beyondpixel.lightning_modules.metrics.labels import pixels_per_class
from beyondpixel.lightning_modules.metrics.neighbourhoods import dilate_bits

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


class BoundaryFScore(CountingScore):
    """F-score of the classes' boundaries over the whole set.

    Precision of a class is the share of its predicted boundary pixels with a true boundary pixel of the same class at
    most the tolerance away (Euclidean, between centres); recall the share of its true ones with a predicted one.
    F = 2PR / (P + R), and 0 where only one of truth and prediction has a boundary. Boundary pixels are those of
    :func:`class_boundaries`, void being a label of its own that is taken over into the prediction; void pixels
    themselves are none.

    Args:
        num_classes: C, at least 2.
        ignore_index: truth label of pixels that do not count.
        class_names: C names for :meth:`summary`; the class numbers if None.
        tolerance: how far two boundaries may be apart to be the same one.
        unit: whether the tolerance is a share of the image's "diagonal" or in "pixels".
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if ``tolerance`` is negative or ``unit`` unknown.

    Example:
        >>> score = BoundaryFScore(2, tolerance=1, unit="pixels")
        >>> score.update(torch.tensor([[[0, 0, 0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1, 1, 1]]]))
        >>> score.summary()["boundary_F"].item()
        1.0
    """

    truth: Tensor
    truth_found: Tensor
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
        names = ("truth", "truth_found", "predicted", "predicted_right")
        super().__init__(num_classes, ignore_index, shapes=dict.fromkeys(names, (num_classes,)), **kwargs)
        self.tolerance = tolerance
        self.unit = unit
        self.class_names = [str(index) for index in range(num_classes)] if class_names is None else list(class_names)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the boundary pixels of a batch, (N, H, W) each."""
        self.check(preds, target)
        height, width = target.shape[-2:]
        radius = self.tolerance * ((height**2 + width**2) ** 0.5 if self.unit == "diagonal" else 1.0)
        valid = target != self.ignore_index
        preds, target = preds.where(valid, self.num_classes), target.where(valid, self.num_classes)
        in_preds, in_target = class_boundaries(preds) & valid, class_boundaries(target) & valid
        found, right = torch.zeros_like(valid), torch.zeros_like(valid)
        for first in range(0, self.num_classes, _BITS):
            found |= in_target & _within(radius, target, _bits(preds, in_preds, first), first)
            right |= in_preds & _within(radius, preds, _bits(target, in_target, first), first)
        self.truth += self._count(target, in_target)
        self.truth_found += self._count(target, found)
        self.predicted += self._count(preds, in_preds)
        self.predicted_right += self._count(preds, right)

    def _count(self, labels: Tensor, where: Tensor) -> Tensor:
        return pixels_per_class(labels, where, self.num_classes).sum(dim=0)

    def compute(self) -> Tensor:
        """(C,) float64 in 0..1; NaN for a class that has no boundary in either truth or prediction."""
        precision = ratio(self.predicted_right, self.predicted).nan_to_num(0.0)
        recall = ratio(self.truth_found, self.truth).nan_to_num(0.0)
        score = (2 * precision * recall / (precision + recall)).nan_to_num(0.0)
        return score.where(self.truth + self.predicted > 0, float("nan"))

    def summary(self) -> dict[str, Tensor]:
        """``boundary_F``, the mean over the classes that have boundaries, and ``boundary_F/<class>``."""
        scores: Tensor = self.compute()
        per_class = {f"boundary_F/{name}": score for name, score in zip(self.class_names, scores, strict=True)}
        return {"boundary_F": scores.nanmean(), **per_class}


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
