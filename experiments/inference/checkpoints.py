"""Checkpoints that may be damaged, of another model or of other code, each with an error that says which."""

from __future__ import annotations

import importlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import LightningModule

from beyondpixel.experiments.environment import describe_environment, git_commit
from beyondpixel.experiments.errors import UserError
from beyondpixel.lightning_modules import SegmentationModule

SHOWN = 5
# what a network's shape does not depend on, so that a checkpoint fits although it differs
FREE = {
    *("class_names", "encoder_weights", "ignore_index", "loss", "lr", "momentum", "weight_decay", "lr_power", "min_lr"),
    *("lr_decay_to", "head_lr_multiplier", "warmup_iters", "warmup_start_lr", "dropout", "norm_momentum"),
    *("boundary_metrics", "atrous_rates", "aggregation", "initialization", "update_strategy", "memory_momentum"),
    *("memory_momentum_rule", "context_weight", "consistency_weight", "inference_passes"),
}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A Lightning checkpoint's content, on the CPU, read without running code from it.

    Raises:
        UserError: if the file is missing, cut short, no checkpoint, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            raise UserError(
                f"{path} holds objects that are not loaded, because loading them could run any code; expected tensors "
                f"and plain values: {str(error).splitlines()[0]}"
            ) from error
        raise UserError(_damaged(path)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(_damaged(path)) from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= set(content):
        raise UserError(
            f"{path} is no checkpoint of a SegmentationModule: expected state_dict and hyper_parameters in it; a bare "
            "state dict is loaded in Python with module.load_state_dict(torch.load(path))"
        )
    return content


def _damaged(path: Path) -> str:
    return (
        f"{path} is damaged or no checkpoint ({path.stat().st_size:,} bytes; was it cut short while it was copied or "
        "written?): copy it again, or use the other of last.ckpt and best.ckpt"
    )


def load_module(path: str | Path, config: Mapping[str, Any]) -> SegmentationModule:
    """The module that a checkpoint holds, on the CPU, ready to predict.

    Args:
        path: the checkpoint; its hyper-parameters decide how the module is built.
        config: the run's config, of which `model.class_path` names the class.

    Raises:
        UserError: as :func:`read_checkpoint`, and if the class cannot be found or built or the weights do not fit it.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint {path}")
    class_path = config["model"]["class_path"]
    folder, _, name = class_path.rpartition(".")
    try:
        kind: type[SegmentationModule] = getattr(importlib.import_module(folder), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is of the class {class_path}, which cannot be imported: {error}") from error
    try:
        module: SegmentationModule = kind.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (RuntimeError, TypeError, ValueError, KeyError, EOFError, OSError, pickle.UnpicklingError) as error:
        read_checkpoint(path)  # says so if the file itself is at fault
        # torch lists every key of every layer on a line of its own; the first lines say what it is
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:SHOWN])
        made = code_differences(path)
        raise UserError(
            f"{path} does not fit {class_path} as it is here"
            + (f" ({'; '.join(made)})" if made else "")
            + f": {reason}. Check out the code that made it, or train again"
        ) from error
    return module.eval()


def check_fits(path: str | Path, module: LightningModule) -> None:
    """Compare a checkpoint with a module that is built already, before its weights are loaded into it.

    Raises:
        UserError: naming the hyper-parameters in which they differ, or the weights that do not fit.
    """
    checkpoint = read_checkpoint(path)
    theirs, ours = checkpoint["hyper_parameters"], dict(module.hparams)
    differing = [
        f"{name} is {theirs.get(name)} in the checkpoint and {ours.get(name)} in the config"
        for name in dict.fromkeys([*theirs, *ours])
        if name not in FREE and theirs.get(name) != ours.get(name)
    ]
    weights, expected = checkpoint["state_dict"], module.state_dict()
    unfit = [
        f"{name} is {_shape(weights.get(name))} in the checkpoint and {_shape(expected.get(name))} in the module"
        for name in dict.fromkeys([*weights, *expected])
        if _shape(weights.get(name)) != _shape(expected.get(name))
    ]
    if not unfit:
        return
    if differing:
        raise UserError(
            f"{path} does not fit this model: {'; '.join(differing)}. Use the config of its run, "
            "--config RUN/config.yaml, or another checkpoint"
        )
    made = code_differences(path) or ["the code that made it is not recorded beside it"]
    more = f" and {len(unfit) - SHOWN} more" if len(unfit) > SHOWN else ""
    raise UserError(
        f"{path} does not fit {type(module).__name__} as it is here ({'; '.join(made)}): "
        f"{'; '.join(unfit[:SHOWN])}{more}. Check out the code that made it, or train again"
    )


def code_differences(path: str | Path) -> list[str]:
    """How the code that trained a checkpoint, as the run folder records it, differs from the code here."""
    record_file = Path(path).resolve().parent.parent / "run.json"
    record = json.loads(record_file.read_text()) if record_file.is_file() else {}
    differences = []
    if record.get("git_commit") and record["git_commit"] != git_commit():
        differences.append(f"made by commit {record['git_commit']}, this is {git_commit() or 'an installed package'}")
    here = describe_environment()["packages"]
    there = record.get("environment", {}).get("packages", {})
    return differences + [
        f"{name} was {there[name]} and is {here[name]}" for name in there if name in here and there[name] != here[name]
    ]


def config_beside(path: str | Path, config_file: Path | None = None) -> dict[str, Any]:
    """The config of the run that a checkpoint lies in, or of another file.

    Raises:
        UserError: if the checkpoint is missing, there is no config, or it does not say which model and data.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint {path}")
    file = config_file or Path(path).resolve().parent.parent / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"there is no {file}, which says how the model of {path} is built and its images are normalised: "
            "give the run's config with --config FILE"
        )
    config = yaml.safe_load(file.read_text())
    missing = [part for part in ("model", "data") if "class_path" not in (config or {}).get(part, {})]
    if missing:
        raise UserError(f"{file} has no {missing[0]}.class_path: expected the config.yaml of a run")
    return dict(config)


def _shape(weight: Any) -> str:
    return "missing" if weight is None else "x".join(map(str, weight.shape)) or "a number"
