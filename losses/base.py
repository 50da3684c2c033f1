"""Base of all losses: a metric that is differentiable in `forward` and accumulates detached sums and counts."""

from collections.abc import Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from beyondpixel.losses.functional.arguments import check_choice, check_positive_int
from beyondpixel.losses.functional.cross_entropy import cross_entropy_sum
from beyondpixel.losses.functional.target import num_valid, raise_pending, read_target, without_autocast
from beyondpixel.losses.ops.operators import bce_pool

PIXEL_LOSSES = ("bce", "bce_mean", "ce", None)
# sum and count of a term on a batch: float64, a scalar or (parts,)
Term = tuple[Tensor, Tensor]


class SegmentationLoss(Metric):
    """Base of the losses: a `torchmetrics.Metric` whose call returns the loss of the batch with a graph.

    Every batch is also added, detached, to a sum and a count per term; `compute()` sums these over the processes of a
    distributed run and divides them, so it returns the loss of all pixels since `reset()`.

    A cross entropy term is called `pixel`: `pixel_loss` selects it, and `_pixel_term` computes it. A subclass with
    other terms passes `term_names` and implements `_batch_terms`, and `_combine` if the loss is not their sum. A term
    with several `parts`, each with a separate sum and count, is the sum of their quotients.

    The transforms of `torch.func` work, but leave their own tensors in the sums: call `reset()` before `compute()`.

    Attributes:
        num_classes: C.
        pixel_loss: "bce", binary cross entropy, summed over classes and averaged over |V| + 1 pixels as in the RMI
            authors' code; "bce_mean", its mean over the valid pixels V and classes; "ce", softmax cross entropy, the
            mean over V; None, no such term.
        with_logits: whether preds are logits (True) or probabilities (False).
        ignore_index: label of the void pixels, which add nothing to any term and get a gradient of exactly zero.
        terms: detached scalar terms of the last batch, unweighted, by name.
    """

    num_batches: Tensor
    _progress: Tensor

    is_differentiable = True
    higher_is_better = False
    full_state_update = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in cls.__dict__:
            return
        # torch.compile keeps at most eight versions per code object; all losses of a process would share them
        call: Any = SegmentationLoss.__call__
        own: Any = FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
        own.__doc__ = call.__doc__
        cls.__call__ = own  # type: ignore[method-assign]

    def __init__(
        self,
        num_classes: int,
        *,
        term_names: tuple[str, ...] = (),
        parts: Mapping[str, int] | None = None,
        pixel_loss: str | None = None,
        with_logits: bool = True,
        ignore_index: int = 255,
    ) -> None:
        check_positive_int("num_classes", num_classes)
        check_choice("pixel_loss", pixel_loss, PIXEL_LOSSES)
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int) or abs(ignore_index) >= 2**63:
            raise ValueError(f"ignore_index: expected an integer label, got {ignore_index!r}")
        super().__init__()
        self.num_classes = num_classes
        self.pixel_loss = pixel_loss
        self.with_logits = with_logits
        self.ignore_index = ignore_index
        self.terms: dict[str, Tensor] = {}
        self._term_names = term_names if pixel_loss is None else ("pixel", *term_names)
        # tensors, since torch.compile would treat numbers that change from step to step as constants
        self.register_buffer("_progress", torch.zeros((), dtype=torch.float64), persistent=False)
        self.add_state("num_batches", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # MetricCollection makes metrics with equal states share them, from the first batch on; NaN equals nothing
        self.add_state("_unlike_others", torch.tensor(torch.nan), dist_reduce_fx="sum")
        for name in self._term_names:
            for part in ("total", "count"):
                zeros = torch.zeros((parts or {}).get(name, ()), dtype=torch.float64)
                self.add_state(f"{name}_{part}", zeros, dist_reduce_fx="sum")

    @property
    def progress(self) -> float:
        """Fraction of training completed, in [0, 1]; only decaying losses use it."""
        return float(self._progress)

    @progress.setter
    def progress(self, value: float) -> None:
        if self._progress.dtype != torch.float64:  # after `.bfloat16()` of a parent module
            self._progress = self._progress.double()
        self._progress.fill_(value)
        self._computed = None  # the weights of the terms may depend on it

    @property
    def update_count(self) -> int:
        """Number of batches since `reset()`, from both `forward` and `update`."""
        return int(self.num_batches)

    def _batch_terms(self, preds: Tensor, target: Tensor) -> dict[str, Term]:
        """Compute sum and count of each term on one batch; target is from `read_target`, the sums have a graph."""
        return {"pixel": self._pixel_term(preds, target)}

    def _pixel_term(self, preds: Tensor, target: Tensor) -> Term:
        if self.pixel_loss == "ce":
            return cross_entropy_sum(preds, target, with_logits=self.with_logits), num_valid(target)
        total, _, _ = bce_pool(preds, target, with_logits=self.with_logits)
        return total, self._bce_count(target)

    def _bce_count(self, target: Tensor) -> Tensor:
        return num_valid(target) * (self.num_classes if self.pixel_loss == "bce_mean" else 1)

    def _combine(self, terms: dict[str, Tensor]) -> Tensor:
        """Combine the terms to the loss: their sum."""
        return torch.stack(list(terms.values())).sum()

    def _divide(self, name: str, total: Tensor, count: Tensor) -> Tensor:
        """Compute a term from its sum and count, 0 for a count of 0; with several parts, the sum of their quotients."""
        return (total / (count + 1 if name == "pixel" and self.pixel_loss == "bce" else count.clamp_min(1))).sum()

    def forward(self, preds: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one batch, with a graph, and add the batch, detached, to the state.

        Args:
            preds: (N, C, H, W) logits, or probabilities if the loss was created with `with_logits=False`.
            target: (N, H, W) integer labels, or (N, C, H, W) multi-hot of 0 and 1.

        Returns:
            Scalar, float32 (float64 for float64 preds).
        """
        # Metric.forward would use the states, and keep the graph of the last batch alive in them
        terms = self._accumulate(preds, target)
        self._update_count = 1  # means "has been updated"; a real count would recompile each step
        self._computed = None
        values = {name: self._divide(name, *terms[name]) for name in self._term_names}
        dtype = torch.promote_types(preds.dtype, torch.float32)
        self.terms = {name: value.detach().to(dtype) for name, value in values.items()}
        loss = self._combine(values).to(dtype)
        self._forward_cache = loss.detach()  # type: ignore[assignment]  # torchmetrics declares None
        return loss

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add one batch to the state."""
        with torch.no_grad():
            self._accumulate(preds, target)

    def compute(self) -> Tensor:
        """Return the loss of all batches since `reset()`, over all processes."""
        raise_pending()
        values = {
            name: self._divide(name, getattr(self, f"{name}_total"), getattr(self, f"{name}_count"))
            for name in self._term_names
        }
        return self._combine(values).float()

    def _accumulate(self, preds: Tensor, target: Tensor) -> Mapping[str, Term]:
        with without_autocast(preds, target):
            target = read_target(
                preds,
                target,
                num_classes=self.num_classes,
                ignore_index=self.ignore_index,
                with_logits=self.with_logits,
            )
            terms = self._batch_terms(preds, target)
        self.num_batches = self.num_batches + 1
        for name, (total, count) in terms.items():
            setattr(self, f"{name}_total", getattr(self, f"{name}_total") + total.detach())
            setattr(self, f"{name}_count", getattr(self, f"{name}_count") + count.detach())
        return terms

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """See `forward`."""
        loss: Tensor = super().__call__(*args, **kwargs)
        return loss
