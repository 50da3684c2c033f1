"""How a data set wants to be drawn, as far as its data module says."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer

from beyondpixel.lightning_modules.pictures import Color, default_palette


def data_attribute(trainer: Trainer, name: str) -> Any:
    """An attribute of the trainer's data module; None if there is no data module or it has none such."""
    return getattr(getattr(trainer, "datamodule", None), name, None)


def palette_of(trainer: Trainer, pl_module: LightningModule) -> list[Color]:
    """The data module's palette, or a made-up one."""
    palette = data_attribute(trainer, "palette")
    if palette is None:
        return default_palette(int(pl_module.hparams["num_classes"]))
    return [(int(red), int(green), int(blue)) for red, green, blue in palette]
