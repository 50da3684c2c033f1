"""What all scores here have in common: counts that are added up over batches and processes."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from beyondpixel.lightning_modules.metrics.labels import check_labels


class CountingScore(Metric):
    """A score whose state is counts; ``update`` adds to them, ``compute`` sums them over processes.

    Args:
        num_classes: C, at least 2.
        ignore_index: truth label of pixels that do not count.
        shapes: of the counts, by name.
        kwargs: further arguments of :class:`torchmetrics.Metric`.
    """

    full_state_update = False

    def __init__(self, num_classes: int, ignore_index: int, *, shapes: dict[str, tuple[int, ...]], **kwargs: Any):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def check(self, preds: Tensor, target: Tensor) -> None:
        """Refuse maps that cannot be scored (ValueError)."""
        check_labels(preds, target, num_classes=self.num_classes, ignore_index=self.ignore_index)

    def reset(self) -> None:
        """Forget all counts."""
        # reset within Lightning's inference mode, the counts could never again be added to outside of it
        with torch.inference_mode(False):
            super().reset()


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient of counts in float64; NaN where the denominator is 0.

    Example:
        >>> ratio(torch.tensor([1, 0]), torch.tensor([4, 0]))
        tensor([0.2500,    nan], dtype=torch.float64)
    """
    return numerator.double() / denominator.double()
