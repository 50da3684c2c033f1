"""From a run's folder back to its model and its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentParser

from beyondpixel.datamodules import SegmentationDataModule
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.checkpoints import load_module
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.lightning_modules import SegmentationModule


def load_model(run: RunFolder) -> SegmentationModule:
    """The trained model of a run, on the CPU, ready to predict.

    Raises:
        UserError: if its last checkpoint is missing, damaged, or does not fit the code here.
    """
    if not run.last_checkpoint.exists():
        raise UserError(f"{run.last_checkpoint} is missing: this needs the trained model; launch the row again")
    return load_module(run.last_checkpoint, run.config)


def build_data(config: Mapping[str, Any]) -> SegmentationDataModule:
    """The data module of a resolved config, for evaluation: the seed of the training plays no part."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SegmentationDataModule, "data")
    data: SegmentationDataModule = parser.instantiate(parser.parse_object({"data": config["data"]}))["data"]
    return data
