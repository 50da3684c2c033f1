"""What an evaluation leaves behind besides its logged scores: how sure they are, and the areas of each image."""

from __future__ import annotations

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn

from beyondpixel.experiments.bootstrap import bootstrap_miou
from beyondpixel.experiments.image_areas import ImageAreas
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.lightning_modules import SegmentationModule


class EvaluationRecorder(Callback):
    """Logs the 95 % interval of mIoU over images, and writes test confusion matrix and areas of each image.

    Logged are `test/mIoU_low` and `test/mIoU_high` (see `bootstrap_miou`), and for `validate` on its own `val/...`
    alike; a validation inside a training has neither interval nor files.

    Args:
        folder: the run's folder; None writes nothing.
    """

    def __init__(self, folder: RunFolder | None) -> None:
        self.folder = folder

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record a validation on its own."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._record("val", trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record a test."""
        self._record("test", trainer, pl_module)

    def _record(self, stage: str, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, SegmentationModule):
            return
        metrics = pl_module.evaluation_metrics(stage)
        matrix = metrics.confusion_matrix().cpu().numpy()  # sums over processes, as the next: all of them must call it
        counts = metrics.image_counts()
        areas = None if counts is None else ImageAreas(np.array(counts.id), *counts[1:])
        if areas is not None:
            for end, value in zip(("low", "high"), bootstrap_miou(areas), strict=True):
                # the same on all processes; sync_dist only tells Lightning so
                pl_module.log(
                    f"{stage}/mIoU_{end}",
                    torch.tensor(value, dtype=torch.float64, device=pl_module.device),
                    sync_dist=True,
                )
        if self.folder is None or not trainer.is_global_zero:
            return
        if areas is not None:
            areas.save(self.folder.images_file(stage))
        if stage == "test":
            self.folder.path.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(self.folder.confusion_file, matrix=matrix, class_names=metrics.class_names)
