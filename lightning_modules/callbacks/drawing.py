"""Palette of a trainer's data module, and logging of images."""

from collections.abc import Sequence
from typing import Any

from pytorch_lightning import Trainer

from beyondpixel.lightning_modules.base import SegmentationModule
from beyondpixel.lightning_modules.visualization import Color, default_palette


def data_attribute(trainer: Trainer, name: str) -> Any:
    """Return an attribute of the trainer's data module; None if there is no data module or no such attribute."""
    return getattr(getattr(trainer, "datamodule", None), name, None)


def palette_of(trainer: Trainer, module: SegmentationModule) -> list[Color]:
    """Return the data module's palette, or the default one."""
    palette = data_attribute(trainer, "palette") or default_palette(module.num_classes)
    return [(int(red), int(green), int(blue)) for red, green, blue in palette]


def log_images(trainer: Trainer, key: str, images: Sequence[Any], **options: Any) -> None:
    """Log images with the loggers that support them, such as W&B's."""
    for logger in trainer.loggers:
        log_image = getattr(logger, "log_image", None)
        if callable(log_image):
            log_image(key, images, step=trainer.global_step, **options)
