"""Callback that draws the confusion matrix of a test."""

from pathlib import Path

import PIL.Image
from pytorch_lightning import Callback, LightningModule, Trainer

from beyondpixel.lightning_modules.base import SegmentationModule
from beyondpixel.lightning_modules.callbacks.prediction_images import log_images
from beyondpixel.lightning_modules.visualization import confusion_figure


class ConfusionFigure(Callback):
    """Draws the confusion matrix of a test.

    It is saved as `<trainer.default_root_dir>/images/test_confusion.png`, and loggers that take images (W&B) get it
    as `test/confusion`.

    Example:
        >>> trainer = Trainer(callbacks=[ConfusionFigure()], logger=False, accelerator="cpu")
    """

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if not isinstance(pl_module, SegmentationModule):
            return
        matrix = pl_module.evaluation_metrics("test").confusion_matrix()  # collective: every process must call it
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir, "images", "test_confusion.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        heading = "Prediction of each class's pixels, percent"
        confusion_figure(matrix.cpu().numpy(), pl_module.class_names, heading=heading).savefig(path)
        log_images(trainer, "test/confusion", [PIL.Image.open(path)])
