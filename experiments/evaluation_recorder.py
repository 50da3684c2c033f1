"""Results of an evaluation in a run folder: scores, their interval, confusion matrix, pixel counts of each image."""

from __future__ import annotations

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from beyondpixel.experiments.bootstrap import mean_interval, resampled_scores
from beyondpixel.experiments.image_counts import ImageCounts
from beyondpixel.experiments.inference.inferers import Chain
from beyondpixel.experiments.run.folder import RunFolder, replacing
from beyondpixel.lightning_modules import SegmentationModule

# the images of a command or of Lightning's `TrainerFn`, which are the first part of the names of its scores
STAGES: dict[str | None, str] = {"validate": "val", "test": "test"}


class EvaluationRecorder(Callback):
    """Write the results of a test or a standalone validation; a validation during training writes nothing.

    It logs the 95 % interval of mIoU over images, `test/mIoU_low` and `test/mIoU_high`, and with a CRF
    `test/crf_seconds`. In the folder, `summary.json` has all logged scores of the stage, `<stage>_images.npz` the
    pixel counts of each image, and `confusion.npz` the confusion matrix of a test.

    Args:
        folder: the folder of a run, or of an evaluation of its model; None writes no files.
    """

    def __init__(self, folder: RunFolder | None) -> None:
        self.folder = folder

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the interval, and write the confusion matrix and the pixel counts."""
        stage = STAGES.get(trainer.state.fn)
        if stage is None or not isinstance(pl_module, SegmentationModule):
            return
        metrics = pl_module.evaluation_metrics(stage)
        matrix = metrics.confusion_matrix().cpu().numpy()  # like the next, sums over processes: all must call it
        of_images = metrics.image_counts()
        counts = None if of_images is None else ImageCounts(np.array(of_images.id), *of_images[1:])
        logged: dict[str, float] = {}
        if counts is not None:
            logged |= zip(("mIoU_low", "mIoU_high"), mean_interval([resampled_scores(counts)]), strict=True)
        seconds = pl_module.inferer.crf_seconds if isinstance(pl_module.inferer, Chain) else None
        if seconds is not None:
            logged["crf_seconds"] = seconds
        for name, value in logged.items():
            # intervals are the same on all processes, and seconds are averaged over them
            tensor = torch.tensor(value, dtype=torch.float64, device=pl_module.device)
            pl_module.log(f"{stage}/{name}", tensor, sync_dist=True)
        if self.folder is None or not trainer.is_global_zero:
            return
        if counts is not None:
            counts.save(self.folder.images_file(stage))
        if stage == "test":
            with replacing(self.folder.confusion_file) as file:
                np.savez_compressed(file, matrix=matrix, class_names=metrics.class_names)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the scores."""
        stage = STAGES.get(trainer.state.fn)
        if stage is None or self.folder is None or not trainer.is_global_zero:
            return
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        own = {name: value for name, value in scores.items() if name.startswith(f"{stage}/")}
        self.folder.summary = {**self.folder.summary, **own}

    on_validation_epoch_end, on_validation_end = on_test_epoch_end, on_test_end
