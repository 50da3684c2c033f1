"""The confusion matrix of an evaluation as a picture."""

from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from beyondpixel.lightning_modules.base import SegmentationModule
from beyondpixel.lightning_modules.confusion_picture import confusion_picture


class ConfusionPicture(Callback):
    """Draws the confusion matrix of a test.

    It is saved as ``<trainer.default_root_dir>/pictures/test_confusion.png``, and loggers that take images (W&B) get it
    as ``test/confusion``.

    Example:
        >>> trainer = Trainer(callbacks=[ConfusionPicture()], logger=False, accelerator="cpu")
    """

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if not isinstance(pl_module, SegmentationModule):
            return
        scores = pl_module.evaluation_metrics("test")
        matrix = scores.confusion_matrix().cpu().numpy()  # sums over the processes: all of them must call it
        if not trainer.is_global_zero:
            return
        picture = confusion_picture(matrix, scores.class_names, heading="Where the pixels of each class went, percent")
        path = Path(trainer.default_root_dir, "pictures", "test_confusion.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        for logger in trainer.loggers:
            log_image = getattr(logger, "log_image", None)
            if callable(log_image):
                log_image("test/confusion", [picture], step=trainer.global_step)
