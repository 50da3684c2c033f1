"""A weighted sum of losses."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from beyondpixel.losses.base import SegmentationLoss, Term


class CombinedLoss(SegmentationLoss):
    """Weighted sum of losses, each of which keeps its own terms and state.

    In `terms` a loss with one term has its own name, others have `<loss>_<term>`: `ce`, `rmi_pixel`, `rmi_rmi`. They
    are not weighted. RMI and CWMI bring a pixel loss of their own unless made with `pixel_loss=None`.

    Args:
        losses: by name, at least one; all of the same number of classes and ignore_index.
        weights: of each loss, not negative; 1 where none is given.

    Attributes:
        losses: the losses, by name.
        weights: their weights, by name.

    Raises:
        ValueError: if there is no loss, losses do not fit together, or a weight is negative, not finite or of no loss.

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
        first = next(iter(losses.values()))
        for name, loss in losses.items():
            if (loss.num_classes, loss.ignore_index) != (first.num_classes, first.ignore_index):
                raise ValueError(
                    f"losses: expected the same num_classes and ignore_index in all, got {first.num_classes} and "
                    f"{first.ignore_index}, but {loss.num_classes} and {loss.ignore_index} in {name!r}"
                )
        unknown = sorted(set(weights or {}) - set(losses))
        if unknown:
            raise ValueError(f"weights: no loss of the name {', '.join(unknown)}; expected {', '.join(losses)}")
        for name, weight in (weights or {}).items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"weights: expected a number that is not negative, got {weight!r} for {name!r}")
        states = {f"{name}_{term}": (name, term) for name, loss in losses.items() for term in loss._term_names}
        super().__init__(
            first.num_classes,
            term_names=tuple(states),
            # probabilities are checked to be some where one of the losses takes them
            with_logits=all(loss.with_logits for loss in losses.values()),
            ignore_index=first.ignore_index,
        )
        self.losses = torch.nn.ModuleDict(losses)
        self.weights = {name: (weights or {}).get(name, 1.0) for name in losses}
        self._states = states
        self._shown = {name: self._shown_names(name, loss) for name, loss in losses.items()}

    @staticmethod
    def _shown_names(name: str, loss: SegmentationLoss) -> dict[str, str]:
        """What each reported term of a loss is called here."""
        terms = list(loss._named_terms({term: torch.zeros(()) for term in loss._term_names}))
        return {term: name if len(terms) == 1 else f"{name}_{term}" for term in terms}

    def _parts(self) -> Iterator[tuple[str, SegmentationLoss]]:
        for name, loss in self.losses.items():
            assert isinstance(loss, SegmentationLoss)
            yield name, loss

    @property
    def progress(self) -> float:
        """Fraction of training done, in [0, 1], of all the losses."""
        return next(self._parts())[1].progress

    @progress.setter
    def progress(self, value: float) -> None:
        for _, loss in self._parts():
            loss.progress = value

    def _batch_terms(self, preds: Tensor, target: Tensor) -> dict[str, Term]:
        return {
            f"{name}_{term}": value
            for name, loss in self._parts()
            for term, value in loss._batch_terms(preds, target).items()
        }

    def _divide(self, name: str, total: Tensor, count: Tensor) -> Tensor:
        owner, inner = self._states[name]
        return dict(self._parts())[owner]._divide(inner, total, count)

    def _named_terms(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        named = {}
        for name, loss in self._parts():
            terms = loss._named_terms({term: values[f"{name}_{term}"] for term in loss._term_names})
            named.update({self._shown[name][term]: value for term, value in terms.items()})
        return named

    def _combine(self, terms: dict[str, Tensor]) -> Tensor:
        weighted = [
            self.weights[name] * loss._combine({term: terms[shown] for term, shown in self._shown[name].items()})
            for name, loss in self._parts()
        ]
        return torch.stack(weighted).sum()

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        for _, loss in self._parts():
            loss.reset()
