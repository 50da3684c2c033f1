"""Callback that skips optimizer steps with a loss or gradients that are not finite."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from beyondpixel.experiments.errors import UserError


class FiniteGuard(Callback):
    """Skip optimizer steps whose loss or gradient norm is not finite, and end the training after a few in a row.

    A skipped step changes no weight, so the checkpoints before it stay valid. In 16-mixed precision gradients overflow
    while the loss scale settles; there the scaler skips those steps itself, and only the loss is checked.

    Args:
        patience: how many optimizer steps in a row may be skipped.

    Raises:
        UserError: naming the step, the batch's ids and the first term or gradient that was not finite.
    """

    def __init__(self, patience: int = 3) -> None:
        self.patience = patience
        self._skipped = 0
        self._ids: list[str] = []
        self._loss: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Store the ids of the images."""
        self._ids = list(batch.get("id", ())) if isinstance(batch, dict) else []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Store the loss."""
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check loss and gradients with a single copy to the CPU."""
        assert self._loss is not None
        values = [self._loss.reshape(())]
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            values += [norm.to(self._loss) for norm in torch._foreach_norm(gradients)]
        finite = torch.isfinite(torch.stack(values)).all()
        if trainer.strategy.reduce_boolean_decision(bool(finite)):
            self._skipped = 0
            return
        self._skipped += 1
        step, what = trainer.global_step + 1, self._first_not_finite(pl_module)
        images = f", images {', '.join(self._ids)}" if self._ids else ""
        if self._skipped > self.patience:
            raise UserError(
                f"{what} was not finite in {self._skipped} steps in a row, the last one at step {step}{images}; the "
                "checkpoints before it are kept: lower model.lr, lengthen model.warmup_iters, or set "
                "trainer.gradient_clip_val"
            )
        rank_zero_warn(f"step {step} is skipped: {what} was not finite{images}")
        optimizer.zero_grad(set_to_none=True)

    def _first_not_finite(self, module: LightningModule) -> str:
        terms = getattr(getattr(module, "loss", None), "terms", {})
        for name, term in terms.items():
            if not torch.isfinite(term).all():
                return f"the loss term {name!r}"
        if self._loss is not None and not torch.isfinite(self._loss).all():
            return "the loss"
        for name, parameter in module.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                return f"the gradient of {name}"
        return "the gradient"
