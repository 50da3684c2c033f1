"""From a run's folder back to its model and its data."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentParser

from beyondpixel.datamodules import SegmentationDataModule
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.lightning_modules import SegmentationModule


def load_model(run: RunFolder) -> SegmentationModule:
    """The trained model of a run, on the CPU, ready to predict.

    Raises:
        UserError: if its last checkpoint is missing.
    """
    if not run.last_checkpoint.exists():
        raise UserError(f"{run.last_checkpoint} is missing: this needs the trained model; launch the row again")
    module, _, name = run.config["model"]["class_path"].rpartition(".")
    model: SegmentationModule = getattr(importlib.import_module(module), name).load_from_checkpoint(
        run.last_checkpoint, map_location="cpu", weights_only=True
    )
    return model.eval()


def build_data(config: Mapping[str, Any]) -> SegmentationDataModule:
    """The data module of a resolved config, for evaluation: the seed of the training plays no part."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SegmentationDataModule, "data")
    data: SegmentationDataModule = parser.instantiate(parser.parse_object({"data": config["data"]}))["data"]
    return data
