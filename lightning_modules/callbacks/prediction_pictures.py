"""Pictures of what the network predicts, while it learns."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from beyondpixel.lightning_modules.callbacks.palettes import data_attribute, palette_of
from beyondpixel.lightning_modules.callbacks.sample_files import save_sample
from beyondpixel.lightning_modules.pictures import Picture, denormalize, prediction_sheet

Batch = dict[str, Any]


class PredictionPictures(Callback):
    """Draws the same few images again and again: the first ones of validation, and of test when that is run.

    A sheet (image, truth, prediction, errors) is saved as
    ``<trainer.default_root_dir>/pictures/<stage>_epoch<k>.png``, after k epochs, every few epochs and at the end.
    Loggers that take images with masks (W&B) get them under the one key ``<stage>/predictions``; this makes about
    three files for each image and time, so both numbers are small.

    After a test, image, truth and prediction of a few images are also saved one by one in ``pictures/test/``, to be
    laid side by side with other runs': those whose ids have the lowest checksums, so that all runs choose the same ones
    and they come from all over the set.

    Palette, class names, mean and standard deviation are those of ``trainer.datamodule`` (``palette``,
    ``class_names``, ``mean``, ``std``); without them colours are made up and images are stretched to full contrast.

    Args:
        num_images: how many images to draw.
        every_n_epochs: how often to draw in training; the end is always drawn.
        num_test_files: how many test images to save one by one; 0 for none.

    Raises:
        ValueError: if ``num_images`` or ``every_n_epochs`` is below 1, or ``num_test_files`` below 0.

    Example:
        >>> trainer = Trainer(callbacks=[PredictionPictures(num_images=2)], logger=False, accelerator="cpu")
    """

    def __init__(self, num_images: int = 4, every_n_epochs: int = 10, num_test_files: int = 8) -> None:
        if num_images < 1 or every_n_epochs < 1:
            raise ValueError(f"num_images and every_n_epochs must be at least 1, got {num_images} and {every_n_epochs}")
        if num_test_files < 0:
            raise ValueError(f"num_test_files must be 0 or more, got {num_test_files}")
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs
        self._samples: dict[str, list[Batch]] = {"val": [], "test": []}
        self._drawn_at_step = -1
        self.num_test_files = num_test_files
        self._test_files: dict[str, Batch] = {}

    def on_validation_batch_end(  # noqa: D102, PLR0917 - the hook's signature
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._keep("val", batch)

    def on_test_batch_end(  # noqa: D102, PLR0917 - the hook's signature
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._keep("test", batch)
        self._keep_for_files(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if trainer.sanity_checking:
            return
        # within an epoch, Lightning does not yet count it
        epoch = trainer.current_epoch + 1 if trainer.state.fn == "fit" else trainer.current_epoch
        if trainer.state.fn != "fit" or epoch % self.every_n_epochs == 0:
            self._draw("val", epoch, trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if trainer.global_step != self._drawn_at_step:
            self._draw("val", trainer.current_epoch, trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._draw("test", trainer.current_epoch, trainer, pl_module)
        self._save_files(trainer, pl_module)

    def _keep(self, stage: str, batch: Batch) -> None:
        """Keep the first samples seen, one by one (validation images may differ in size), on the CPU."""
        samples = self._samples[stage]
        for index in range(min(len(batch["image"]), self.num_images - len(samples))):
            samples.append({key: batch[key][index].cpu() for key in ("image", "mask")})

    def _keep_for_files(self, batch: Batch) -> None:
        for index, name in enumerate(batch.get("id") or ()):
            if name in self._test_files or self.num_test_files == 0:
                continue  # distributed samplers repeat some images
            if len(self._test_files) == self.num_test_files:
                last = max(self._test_files, key=_checksum)
                if _checksum(name) >= _checksum(last):
                    continue
                del self._test_files[last]
            self._test_files[name] = {part: batch[part][index].cpu() for part in ("image", "mask")}

    def _save_files(self, trainer: Trainer, pl_module: LightningModule) -> None:
        samples, self._test_files = self._test_files, {}
        palette = palette_of(trainer, pl_module)
        if not trainer.is_global_zero or len(palette) > 255:
            return
        for name, sample in samples.items():
            save_sample(
                Path(trainer.default_root_dir, "pictures", "test"),
                name,
                _picture(sample["image"], trainer),
                sample["mask"].numpy(),
                _predict(sample["image"], trainer, pl_module),
                palette=palette,
                ignore_index=int(pl_module.hparams["ignore_index"]),
            )

    def _draw(self, stage: str, epoch: int, trainer: Trainer, pl_module: LightningModule) -> None:
        samples = self._samples[stage]
        if not trainer.is_global_zero or not samples:
            return
        self._drawn_at_step = trainer.global_step
        images = [_picture(sample["image"], trainer) for sample in samples]
        targets = [sample["mask"].numpy() for sample in samples]
        preds = [_predict(sample["image"], trainer, pl_module) for sample in samples]
        names = [str(name) for name in data_attribute(trainer, "class_names") or _own_names(pl_module)]
        ignore_index = int(pl_module.hparams["ignore_index"])

        path = Path(trainer.default_root_dir, "pictures", f"{stage}_epoch{epoch}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        prediction_sheet(
            images,
            targets,
            preds,
            palette=palette_of(trainer, pl_module),
            class_names=names,
            ignore_index=ignore_index,
            heading=f"{stage}, epoch {epoch}, step {trainer.global_step}",
        ).save(path)

        labels = {**dict(enumerate(names)), ignore_index: "not labelled"}
        masks = [
            {
                "prediction": {"mask_data": predicted, "class_labels": labels},
                "truth": {"mask_data": target, "class_labels": labels},
            }
            for predicted, target in zip(preds, targets, strict=True)
        ]
        for logger in trainer.loggers:
            log_image = getattr(logger, "log_image", None)
            if callable(log_image):
                log_image(f"{stage}/predictions", images, step=trainer.global_step, masks=masks)


def _checksum(name: str) -> int:
    return zlib.crc32(name.encode())


def _own_names(pl_module: LightningModule) -> list[str]:
    return [str(index) for index in range(int(pl_module.hparams["num_classes"]))]


def _picture(image: Tensor, trainer: Trainer) -> Picture:
    mean, std = data_attribute(trainer, "mean"), data_attribute(trainer, "std")
    if mean is None or std is None:
        low, high = float(image.min()), float(image.max())
        mean, std = [-low / (high - low + 1e-6)] * 3, [1 / (high - low + 1e-6)] * 3
    return denormalize(image.numpy(), mean, std)


def _predict(image: Tensor, trainer: Trainer, pl_module: LightningModule) -> NDArray[np.int64]:
    """One image at a time, in the trainer's precision; the module's mode is put back."""
    was_training = pl_module.training
    pl_module.eval()
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        classes = pl_module(image[None].to(pl_module.device)).argmax(dim=1)[0]
    pl_module.train(was_training)
    preds: NDArray[np.int64] = classes.cpu().numpy()
    return preds
