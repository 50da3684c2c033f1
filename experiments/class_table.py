"""Scores of all classes as one W&B table instead of one panel per class and score."""

from __future__ import annotations

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

# logged for each class, as test/IoU/road
SCORES_OF_CLASSES = ("IoU", "boundary_IoU", "boundary_F")


class ClassTable(Callback):
    """Log the table `test/classes` after a test, to loggers with tables (W&B): one row per class, one column per score.

    Each score is also in W&B's history, without a panel of its own (see `AxesLogger`).

    Example:
        >>> trainer = Trainer(callbacks=[ClassTable()], logger=False, accelerator="cpu")
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the table from the first rank; all ranks have the same scores."""
        scores = trainer.callback_metrics
        classes = [key.removeprefix("test/IoU/") for key in scores if key.startswith("test/IoU/")]
        if not classes or not trainer.is_global_zero:
            return
        columns = [name for name in SCORES_OF_CLASSES if f"test/{name}/{classes[0]}" in scores]
        lines = [[label, *(float(scores[f"test/{name}/{label}"]) for name in columns)] for label in classes]
        for logger in trainer.loggers:
            log_table = getattr(logger, "log_table", None)
            if callable(log_table):
                log_table("test/classes", columns=["class", *columns], data=lines, step=trainer.global_step)
