"""The score of each class as one table in W&B instead of a panel a class."""

from __future__ import annotations

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

PREFIX = "test/IoU/"


class ClassTable(Callback):
    """After a test, gives loggers that take tables (W&B) `test/classes`: class and IoU, one line a class.

    Each score is in W&B's history, without a panel each (see `AxesLogger`).

    Example:
        >>> trainer = Trainer(callbacks=[ClassTable()], logger=False, accelerator="cpu")
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The logged scores: the same on all ranks, and logged by the first."""
        scores = trainer.callback_metrics
        lines = [[key.removeprefix(PREFIX), float(scores[key])] for key in scores if key.startswith(PREFIX)]
        if not lines or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            log_table = getattr(logger, "log_table", None)
            if callable(log_table):
                log_table("test/classes", columns=["class", "IoU"], data=lines, step=trainer.global_step)
