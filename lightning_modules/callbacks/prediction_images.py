"""Images of predictions during training and after a test."""

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from beyondpixel.lightning_modules.base import SegmentationModule
from beyondpixel.lightning_modules.visualization import (
    Color,
    Image,
    Mask,
    default_palette,
    denormalize,
    prediction_grid,
)
from beyondpixel.lightning_modules.visualization.sample_archive import write_samples

Sample = dict[str, Tensor]  # image and mask, on the CPU


class PredictionImages(Callback):
    """Draws the same few images repeatedly: the first ones of validation, and of test when that is run.

    A grid (image, target, prediction, errors) is saved as `<trainer.default_root_dir>/images/val.png`, which replaces
    the previous one, and `images/test.png`. Loggers that take images (W&B) get each grid of validation as
    `val/predictions`, and after a test the images themselves, side by side, with target and prediction as masks, as
    `test/predictions`. At most seven files are written: clusters limit the number of files.

    After a test, image, target and prediction of a few images are also saved one by one in `images/test.zip`, for
    comparisons with other runs: those whose ids have the lowest checksums, so that all runs choose the same ones,
    spread over the whole set.

    Palette, class names, mean and standard deviation are those of `trainer.datamodule` (`palette`, `class_names`,
    `mean`, `std`); without them colors are generated and images are stretched to full contrast.

    Args:
        num_images: how many images to draw.
        times: how often to draw in training, evenly spread over its steps, including the end; always after a
            validation, so with fewer validations, each one is drawn.
        num_test_files: how many test images to save one by one; 0 for none.

    Raises:
        ValueError: if `num_images` or `times` is below 1, or `num_test_files` below 0.

    Example:
        >>> trainer = Trainer(callbacks=[PredictionImages(num_images=2)], logger=False, accelerator="cpu")
    """

    def __init__(self, num_images: int = 4, times: int = 2, num_test_files: int = 8) -> None:
        if num_images < 1 or times < 1:
            raise ValueError(f"num_images and times must be at least 1, got {num_images} and {times}")
        if num_test_files < 0:
            raise ValueError(f"num_test_files must be 0 or more, got {num_test_files}")
        self.num_images = num_images
        self.times = times
        self.num_test_files = num_test_files
        self._samples: dict[str, list[Sample]] = {"val": [], "test": []}
        self._test_files: dict[str, Sample] = {}
        self._drawn_at_step = -1
        self._due = 0  # drawings due at the last check

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._due = self._drawings_due(trainer)

    def on_validation_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._keep_first("val", batch)

    def on_test_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._keep_first("test", batch)
        self._keep_lowest_checksums(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if trainer.sanity_checking:
            return
        due = self._drawings_due(trainer) if trainer.state.fn == "fit" else self._due
        if trainer.state.fn != "fit" or due > self._due:
            self._draw("val", trainer, pl_module)
        self._due = due

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if trainer.global_step != self._drawn_at_step:
            self._draw("val", trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._draw("test", trainer, pl_module)
        self._save_files(trainer, pl_module)

    def _drawings_due(self, trainer: Trainer) -> int:
        return int(self.times * trainer.global_step / trainer.estimated_stepping_batches)

    def _keep_first(self, stage: str, batch: Any) -> None:
        # one by one, because validation images may differ in size
        missing = self.num_images - len(self._samples[stage])
        self._samples[stage] += [_sample(batch, index) for index in range(min(len(batch["image"]), missing))]

    def _keep_lowest_checksums(self, batch: Any) -> None:
        for index, name in enumerate(batch.get("id") or ()):
            if name in self._test_files:
                continue  # distributed samplers repeat some images
            lowest = self._lowest([*self._test_files, name])
            if name in lowest:
                self._test_files[name] = _sample(batch, index)
                self._test_files = {kept: self._test_files[kept] for kept in lowest}

    def _lowest(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: zlib.crc32(name.encode()))[: self.num_test_files]

    def _save_files(self, trainer: Trainer, module: LightningModule) -> None:
        samples, self._test_files = self._test_files, {}
        if trainer.world_size > 1:  # each process has those of its own shard
            shares: list[dict[str, Sample]] = [{}] * trainer.world_size
            dist.all_gather_object(shares, samples)
            # the first process takes precedence: others repeat its images, or have them without labels, as padding
            everything = {name: sample for share in reversed(shares) for name, sample in share.items()}
            samples = {name: everything[name] for name in self._lowest(everything)}
        if not samples or not trainer.is_global_zero:
            return
        if not isinstance(module, SegmentationModule) or module.num_classes > 255:
            return
        write_samples(
            Path(trainer.default_root_dir, "images", "test.zip"),
            {name: _with_prediction(sample, trainer, module) for name, sample in samples.items()},
            _palette(trainer, module),
            ignore_index=module.ignore_index,
        )

    def _draw(self, stage: str, trainer: Trainer, module: LightningModule) -> None:
        samples = self._samples[stage]
        if not trainer.is_global_zero or not samples or not isinstance(module, SegmentationModule):
            return
        self._drawn_at_step = trainer.global_step
        images, targets, preds = zip(*[_with_prediction(sample, trainer, module) for sample in samples], strict=True)
        names = [str(name) for name in _data_attribute(trainer, "class_names") or module.class_names]

        path = Path(trainer.default_root_dir, "images", f"{stage}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        prediction_grid(
            images,
            targets,
            preds,
            palette=_palette(trainer, module),
            class_names=names,
            ignore_index=module.ignore_index,
            heading=f"{stage}, step {trainer.global_step}",
        ).savefig(path)

        if stage == "val":
            log_images(trainer, "val/predictions", [PIL.Image.open(path)])
            return
        labels = {**dict(enumerate(names)), module.ignore_index: "not labeled"}
        masks = {
            kind: {"mask_data": _side_by_side(classes, fill=module.ignore_index), "class_labels": labels}
            for kind, classes in (("prediction", preds), ("target", targets))
        }
        log_images(trainer, "test/predictions", [_side_by_side(images, fill=0)], masks=[masks])


def _side_by_side(arrays: Sequence[NDArray[Any]], *, fill: int) -> NDArray[Any]:
    """Concatenate (H, W, ...) arrays from left to right; smaller ones are padded at the bottom."""
    height = max(len(array) for array in arrays)
    missing = [[(0, height - len(array)), *[(0, 0)] * (array.ndim - 1)] for array in arrays]
    return np.concatenate(
        [np.pad(array, widths, constant_values=fill) for array, widths in zip(arrays, missing, strict=True)], axis=1
    )


def _sample(batch: Any, index: int) -> Sample:
    return {key: batch[key][index].cpu() for key in ("image", "mask")}


def _with_prediction(sample: Sample, trainer: Trainer, module: SegmentationModule) -> tuple[Image, Mask, Mask]:
    """Return image, target and prediction as arrays; predicted in the trainer's precision, in evaluation mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        preds = module.infer(sample["image"][None].to(module.device)).argmax(dim=1)[0]
    for part, mode in modes.items():  # module.train() would also change parts that are frozen in evaluation mode
        part.training = mode
    image = sample["image"].float()  # NumPy has no bfloat16
    mean, std = _data_attribute(trainer, "mean"), _data_attribute(trainer, "std")
    if mean is None or std is None:
        low, high = float(image.min()), float(image.max())
        mean, std = [-low / (high - low + 1e-6)] * 3, [1 / (high - low + 1e-6)] * 3
    return denormalize(image.numpy(), mean, std), sample["mask"].numpy(), preds.cpu().numpy()


def _data_attribute(trainer: Trainer, name: str) -> Any:
    return getattr(getattr(trainer, "datamodule", None), name, None)


def _palette(trainer: Trainer, module: SegmentationModule) -> list[Color]:
    palette = _data_attribute(trainer, "palette") or default_palette(module.num_classes)
    return [(int(red), int(green), int(blue)) for red, green, blue in palette]


def log_images(trainer: Trainer, key: str, images: Sequence[Any], **options: Any) -> None:
    """Log images with the loggers that support them, such as W&B's."""
    for logger in trainer.loggers:
        log_image = getattr(logger, "log_image", None)
        if callable(log_image):
            log_image(key, images, step=trainer.global_step, **options)
