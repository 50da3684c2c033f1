"""Predictions as image files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter

from beyondpixel.lightning_modules.base import SegmentationModule
from beyondpixel.lightning_modules.callbacks.data_module import palette_of
from beyondpixel.lightning_modules.visualization import indexed_image


class PredictionWriter(BasePredictionWriter):
    """Writes each prediction as a PNG that holds class numbers and, for viewers, the data set's palette.

    The file's name is the image's id; slashes in it make folders. ``np.asarray(Image.open(path))`` gives the classes
    back. Above 256 classes the PNG has 16 bits and no palette.

    Args:
        folder: where to write; ``<trainer.default_root_dir>/predictions`` if None.

    Example:
        >>> trainer = Trainer(callbacks=[PredictionWriter("predictions")], logger=False, accelerator="cpu")
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder

    def write_on_batch_end(  # noqa: D102, PLR0917 - the hook's signature
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        folder = Path(trainer.default_root_dir, "predictions") if self.folder is None else Path(self.folder)
        palette = palette_of(trainer, cast(SegmentationModule, pl_module))
        if prediction["id"] is None:
            raise ValueError("predictions are named by the batch's 'id', a list of str, but the batch has none")
        for name, preds in zip(prediction["id"], prediction["preds"], strict=True):
            path = folder / f"{name}.png"
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"id {name!r} leads out of the folder of predictions, {folder}")
            path.parent.mkdir(parents=True, exist_ok=True)
            indexed_image(preds.cpu().numpy(), palette).save(path)
