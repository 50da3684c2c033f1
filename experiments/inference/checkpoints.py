"""Load and check checkpoints: complete, unmodified, and of a model that fits, or an error that names the problem."""

from __future__ import annotations

import inspect
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_warn

from beyondpixel.datamodules import SegmentationDataModule
from beyondpixel.experiments.build import build_all
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.merge import MergedConfig
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.run.processes import process_rank
from beyondpixel.experiments.run.provenance import describe_environment, git_commit
from beyondpixel.experiments.yaml_files import read_yaml
from beyondpixel.lightning_modules import SegmentationModule
from beyondpixel.lightning_modules.networks import without_pretrained_weights

NAMED = ("last", "best")
CONTENT = ("state_dict", "hyper_parameters")
SHOWN = 5
# what zipfile raises for an archive with damaged headers, lengths or data
ARCHIVE_ERRORS = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)


def find_checkpoint(ckpt_path: str | Path, config_file: Path | None = None) -> Path:
    """Resolve `last`, `best` or a path to a checkpoint file, and verify it.

    Args:
        ckpt_path: a file, or `last` or `best` of the run that the config belongs to.
        config_file: the run's config.yaml.

    Raises:
        UserError: if `last` or `best` is given without a run, or as for `read_checkpoint`.
    """
    path = Path(ckpt_path)
    if str(ckpt_path) in NAMED and not path.is_file():
        if config_file is None:
            raise UserError(
                f"--ckpt_path {ckpt_path}: of which run? Add --config RUN/config.yaml, or give the file's path"
            )
        path = Path(config_file).resolve().parent / "checkpoints" / f"{ckpt_path}.ckpt"
    read_checkpoint(path)
    return path


def newest_whole_checkpoint(folder: RunFolder) -> Path | None:
    """The checkpoint to resume a run from: `last`, or the one before if `last` is damaged, with a warning.

    A damaged `last.ckpt` is kept as `last.damaged.ckpt`, so that it is never mistaken for the previous checkpoint.
    `best` is no fallback: it was saved in the middle of an epoch, after which a resumed run sees other data.

    Returns:
        None if the run has no checkpoint.

    Raises:
        UserError: if there are checkpoints and all are damaged.
    """
    present = [file for file in (folder.last_checkpoint, folder.previous_checkpoint) if file.is_file()]
    problems = []
    for file in present:
        try:
            read_checkpoint(file)
        except UserError as error:
            problems.append(str(error))
            continue
        if problems:
            rank_zero_warn(f"{problems[0]}. The run is resumed from the previous checkpoint, {file}")
            if process_rank() == 0:
                folder.last_checkpoint.replace(folder.last_checkpoint.with_name("last.damaged.ckpt"))
        return file
    if problems:
        raise UserError("; ".join([*problems, "no complete checkpoint is left: add --overwrite to train from scratch"]))
    return None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a Lightning checkpoint on the CPU, after checking that it is complete and unmodified.

    Every byte is read and compared with its checksum: torch's own reader does not compare the checksums (CRC-32) that
    `torch.save` writes, so it loads changed weights. Tensors are read again when they are used.

    Raises:
        UserError: if the file is missing, truncated, modified, not a checkpoint, or contains more than plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint {path}: expected a file" + ("" if path.suffix else ", last or best"))
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
    except ARCHIVE_ERRORS as error:
        raise UserError(_damaged(path)) from error
    if changed is not None:
        raise UserError(_damaged(path, f"its part {changed} has changed since it was written"))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a stream that torch.save did not write can raise anything
        text = str(error).strip() or type(error).__name__
        if "weights_only" in text or "Unsupported" in text:
            raise UserError(
                f"{path} holds objects that are not loaded, because loading them could run any code; expected tensors "
                f"and plain values: {text.splitlines()[0]}"
            ) from error
        raise UserError(_damaged(path)) from error
    if not (isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in CONTENT)):
        raise UserError(
            f"{path} is no checkpoint of a SegmentationModule: expected state_dict and hyper_parameters in it; a bare "
            "state dict is loaded in Python with module.load_state_dict(torch.load(path))"
        )
    return content


def _damaged(path: Path, what: str = "was it cut short while it was copied or written?") -> str:
    return (
        f"{path} is damaged or no checkpoint ({path.stat().st_size:,} bytes; {what}): copy it again, or use the other "
        "of last.ckpt and best.ckpt"
    )


def load_trained(
    path: str | Path, config: Mapping[str, Any] | None = None
) -> tuple[SegmentationModule, SegmentationDataModule]:
    """Load the module of a checkpoint, on the CPU, ready to predict, and its data module.

    Where checkpoint and config differ, the module is built with the checkpoint's hyper-parameters.

    Args:
        path: the checkpoint.
        config: the resolved config of its run; the one beside the checkpoint if None.

    Raises:
        UserError: as for `read_checkpoint`, if module or data cannot be built, or the weights do not fit the module.
    """
    content = read_checkpoint(path)
    config = config_of(path) if config is None else config
    arguments = config["model"].get("init_args", {})
    # the loss is not needed, and is not saved if it is a module
    saved = {key: value for key, value in content["hyper_parameters"].items() if key in arguments and key != "loss"}
    try:
        with without_pretrained_weights():
            built = build_all({**config, "model": {**config["model"], "init_args": {**arguments, **saved}}})
    except UserError as error:
        names = " and ".join(config[part]["class_path"] for part in ("model", "data"))
        raise UserError(f"{path} is of {names}, which cannot be built: {error}") from error
    module, data = built.module, built.datamodule
    assert isinstance(module, SegmentationModule)
    assert isinstance(data, SegmentationDataModule)
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError:
        check_fits(path, module)  # raises an error that names the differences
        raise
    return module.eval(), data


def check_fits(path: str | Path, module: LightningModule) -> None:
    """Compare a verified checkpoint with an existing module, before its weights are loaded into it.

    Raises:
        UserError: naming the hyper-parameters in which they differ, or the weights that do not fit.
    """
    checkpoint = read_checkpoint(path)
    weights, expected = checkpoint["state_dict"], module.state_dict()
    unfit = [
        f"{name} is {_shape(weights.get(name))} in the checkpoint and {_shape(expected.get(name))} in the module"
        for name in dict.fromkeys([*weights, *expected])
        if _shape(weights.get(name)) != _shape(expected.get(name))
    ]
    if not unfit:
        return
    with_loss = any(line.startswith("loss.") for line in unfit)
    differing = _differing_arguments(checkpoint["hyper_parameters"], module, with_loss=with_loss)
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


def _differing_arguments(theirs: Mapping[str, Any], module: LightningModule, *, with_loss: bool) -> list[str]:
    """Hyper-parameters in which a checkpoint and a module differ, of those on which the shapes of weights depend."""
    # of the arguments that all modules share these are num_classes and, if it has weights, the loss
    shaping = {"num_classes", "loss"} if with_loss else {"num_classes"}
    free = {*inspect.signature(SegmentationModule).parameters, "encoder_weights"} - shaping
    return [
        f"{name} is {value} in the checkpoint and {module.hparams[name]} in the config"
        for name, value in theirs.items()
        if name in module.hparams and name not in free and value != module.hparams[name]
    ]


def code_differences(path: str | Path) -> list[str]:
    """Differences between the code that trained a checkpoint, as its run folder records it, and the code here."""
    try:
        record = RunFolder(Path(path).resolve().parent.parent).record
    except UserError:  # the record is damaged
        return []
    differences = []
    if record.get("git_commit") and record["git_commit"] != git_commit():
        differences.append(f"made by commit {record['git_commit']}, this is {git_commit() or 'an installed package'}")
    here = describe_environment()["packages"]
    there = record.get("environment", {}).get("packages", {})
    return differences + [
        f"{name} was {there[name]} and is {here[name]}" for name in there if name in here and there[name] != here[name]
    ]


def config_of(
    path: str | Path, config_file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Config of the run that a checkpoint belongs to.

    Args:
        path: the checkpoint.
        config_file: another file that holds the config.
        overrides: dotted keys that win, such as `{"data.root": "/data/CamVid"}`.

    Raises:
        UserError: if there is no config, or it does not name model and data.
    """
    file = config_file or Path(path).resolve().parent.parent / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"no {file}, which says how the model of {path} is built and its images are normalized: give the run's "
            "config with --config FILE"
        )
    config = read_yaml(file)
    for part in ("model", "data"):
        if not isinstance(config.get(part), dict) or not isinstance(config[part].get("class_path"), str):
            raise UserError(f"{file} has no {part}.class_path: expected the config.yaml of a run")
    merged = MergedConfig()
    merged.add(config, source=str(file))
    for key, value in (overrides or {}).items():
        merged.set(key, value, source="command line")
    return merged.values


def _shape(weight: Any) -> str:
    return "missing" if weight is None else "x".join(map(str, getattr(weight, "shape", ()))) or "a number"
