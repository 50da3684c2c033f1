"""Weighted sum of losses."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from beyondpixel.losses.base import SegmentationLoss
from beyondpixel.losses.functional.arguments import is_finite

# what all parts have in common
SHARED = ("num_classes", "with_logits", "ignore_index")


class CombinedLoss(SegmentationLoss):
    """Weighted sum of losses, each with its own terms and state.

    In `terms`, the key of a loss with one term is its name, others have `<loss>_<term>`: `ce`, `rmi_pixel`, `rmi_rmi`.
    They are not weighted. RMI and CWMI include their own pixel loss unless created with `pixel_loss=None`.

    Args:
        losses: losses by name, at least one; all with the same `num_classes`, `ignore_index` and `with_logits`.
        weights: weights by name, not negative; 1 for losses without one.

    Attributes:
        losses: the losses, by name.
        weights: their weights, by name.

    Raises:
        ValueError: if there is no loss, these attributes differ, or a weight is negative, not finite or of no loss.

    >>> from beyondpixel.losses import CrossEntropyLoss, LovaszLoss
    >>> loss = CombinedLoss({"ce": CrossEntropyLoss(2), "lovasz": LovaszLoss(2)}, weights={"lovasz": 0.5})
    >>> loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]]))  # log 2 + 0.5 · 0.5
    tensor(0.9431)
    >>> loss.terms
    {'ce': tensor(0.6931), 'lovasz': tensor(0.5000)}
    """

    def __init__(self, losses: Mapping[str, SegmentationLoss], *, weights: Mapping[str, float] | None = None) -> None:
        if not losses:
            raise ValueError("losses: expected at least one loss, got none")
        for attribute in SHARED:
            _check_equal(attribute, {name: getattr(loss, attribute) for name, loss in losses.items()})
        unknown = sorted(set(weights or {}) - set(losses))
        if unknown:
            raise ValueError(f"weights: no loss named {', '.join(unknown)}; expected {', '.join(losses)}")
        _check_weights(weights or {})
        first = next(iter(losses.values()))
        super().__init__(**{attribute: getattr(first, attribute) for attribute in SHARED})
        self.losses = torch.nn.ModuleDict(losses)
        self.weights = {name: (weights or {}).get(name, 1.0) for name in losses}

    def _named_losses(self) -> Iterator[tuple[str, SegmentationLoss]]:
        for name, loss in self.losses.items():
            assert isinstance(loss, SegmentationLoss)
            yield name, loss

    @property
    def progress(self) -> float:
        """Fraction of training completed, in [0, 1], for all losses."""
        return next(self._named_losses())[1].progress

    @progress.setter
    def progress(self, value: float) -> None:
        for _, loss in self._named_losses():
            loss.progress = value
        self._computed = None

    def forward(self, preds: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one batch, with a graph, and add the batch to the state of each loss."""
        values = [self.weights[name] * loss(preds, target) for name, loss in self._named_losses()]
        self.terms = {
            name if len(loss.terms) == 1 else f"{name}_{term}": value
            for name, loss in self._named_losses()
            for term, value in loss.terms.items()
        }
        self.num_batches = self.num_batches + 1
        self._update_count = 1
        self._computed = None
        loss = torch.stack(values).sum()
        self._forward_cache = loss.detach()  # type: ignore[assignment]  # torchmetrics declares None
        return loss

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add one batch to the state of each loss."""
        self.num_batches = self.num_batches + 1
        for _, loss in self._named_losses():
            loss.update(preds, target)

    def compute(self) -> Tensor:
        """Return the weighted sum of the losses' values of `compute()`."""
        return torch.stack([self.weights[name] * loss.compute() for name, loss in self._named_losses()]).sum()

    def persistent(self, mode: bool = False) -> None:
        """Set whether the state of each loss is part of `state_dict()`."""
        super().persistent(mode)
        for _, loss in self._named_losses():
            loss.persistent(mode)

    def reset(self) -> None:
        """Reset the state of each loss."""
        super().reset()
        for _, loss in self._named_losses():
            loss.reset()


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if not (is_finite(weight) and weight >= 0):
            raise ValueError(f"weights: expected a number that is not negative, got {weight!r} for {name!r}")


def _check_equal(attribute: str, values: Mapping[str, object]) -> None:
    expected = next(iter(values.values()))
    for name, value in values.items():
        if value != expected:
            raise ValueError(f"losses: expected the same {attribute} in all, got {expected}, but {value} in {name!r}")
