"""Progress bar of a training whose length is given in steps."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar


class StepProgressBar(RichProgressBar):
    """Lightning's progress bar without meaningless values: the last of unlimited epochs (-2) and the logger's version.

    Example:
        >>> trainer = Trainer(callbacks=[StepProgressBar()], logger=False, max_steps=10, accelerator="cpu")
        >>> type(trainer.progress_bar_callback).__name__
        'StepProgressBar'
    """

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Metrics beside the bar."""
        return {key: value for key, value in super().get_metrics(trainer, pl_module).items() if key != "v_num"}

    def _get_train_description(self, current_epoch: int) -> str:
        text = super()._get_train_description(current_epoch)
        return text.replace("/-2", "") if self.trainer.max_epochs == -1 else text
