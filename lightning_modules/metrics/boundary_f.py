"""Boundary F-score within a tolerance.

Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013, with their
tolerance of 0.75 % of the image's diagonal. They average over images; here, as for every metric of this package, counts
are summed over the whole set first, so that an image with a long boundary weighs more than one with a short one.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from beyondpixel.lightning_modules.metrics.counts import CountMetric, ratio
from beyondpixel.lightning_modules.metrics.neighborhoods import dilate, edges, with_void


class BoundaryF(CountMetric):
    """F-score of the classes' boundaries over the whole set.

    Precision of a class is the share of its predicted boundary pixels with a true boundary pixel of the same class at
    most the tolerance away (Euclidean, between centers); recall the share of its true ones with a predicted one.
    F = 2PR / (P + R), and 0 where only one of target and prediction has a boundary. A boundary pixel has a neighbor
    above, below, left or right with another label, where void counts as a label, also in the prediction; void pixels
    themselves are not boundary pixels, and the image's border is not a boundary.

    Args:
        num_classes: C, at least 2.
        ignore_index: target label of pixels that are excluded.
        class_names: C distinct names; the class numbers if None.
        tolerance: largest distance between matching boundary pixels.
        unit: whether the tolerance is a fraction of the image's "diagonal" or in "pixels".
        kwargs: further arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: if `tolerance` is negative or `unit` unknown.

    Example:
        >>> metric = BoundaryF(2, tolerance=1, unit="pixels")
        >>> metric.update(torch.tensor([[[0, 0, 0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1, 1, 1]]]))
        >>> metric.compute()["boundary_F"].item()
        1.0
    """

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
        super().__init__(num_classes, ignore_index, class_names, shape=(4, num_classes), **kwargs)
        self.tolerance = tolerance
        self.unit = unit

    def count(self, preds: Tensor, target: Tensor) -> Tensor:
        """Count the boundary pixels of a batch: true ones, true ones found, predicted ones, right predicted ones."""
        height, width = target.shape[-2:]
        radius = self.tolerance * ((height**2 + width**2) ** 0.5 if self.unit == "diagonal" else 1.0)
        maps = [with_void(labels, target != self.ignore_index, self.num_classes) for labels in (preds, target)]
        # the class of each boundary pixel, and num_classes elsewhere
        of_preds, of_target = (np.where(edges(labels, corners=False), labels, self.num_classes) for labels in maps)
        counts = np.zeros((4, self.num_classes), dtype=np.int64)
        for index in np.setdiff1d([of_preds, of_target], self.num_classes):
            predicted, true = of_preds == index, of_target == index
            found = true & dilate(predicted, radius, euclidean=True)
            right = predicted & dilate(true, radius, euclidean=True)
            counts[:, index] = [np.count_nonzero(pixels) for pixels in (true, found, predicted, right)]
        return torch.from_numpy(counts)

    def compute(self) -> dict[str, Tensor]:
        """Return `boundary_F`, the mean over the classes that have boundaries, and `boundary_F/<class>`."""
        true, found, predicted, right = self.counts
        precision, recall = ratio(right, predicted).nan_to_num(0.0), ratio(found, true).nan_to_num(0.0)
        score = (2 * precision * recall / (precision + recall)).nan_to_num(0.0)
        score = score.where(true + predicted > 0, float("nan"))
        return {"boundary_F": score.nanmean(), **self.named("boundary_F", score)}
