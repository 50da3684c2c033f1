"""Checks before any run starts, so that no job fails after a night in a queue."""

from __future__ import annotations

import inspect
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer

from beyondpixel.datamodules.options import batch_size_of_process
from beyondpixel.experiments.build import build_all, build_data
from beyondpixel.experiments.disk_space import closest_existing
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.inferers import parse_inferer
from beyondpixel.experiments.launch.lock import RunLock
from beyondpixel.experiments.plan import Run
from beyondpixel.experiments.yaml_files import shown
from beyondpixel.lightning_modules import SegmentationModule
from beyondpixel.lightning_modules.networks import build_encoder, without_pretrained_weights

# W&B's files, images, logs and scores of a run
BYTES_BESIDE_CHECKPOINTS = 50 * 10**6
# `last`, `previous`, `best`, and the one that is being written
CHECKPOINTS = 4
# arguments that do not change the network: runs that differ in these alone need only one to be built
TRAINING_ARGUMENTS = frozenset(inspect.signature(SegmentationModule.__init__).parameters)
# arguments of the trainer that need the machine of the run, or objects
UNCHECKED_ARGUMENTS = ("accelerator", "strategy", "devices", "num_nodes", "precision", "plugins", "callbacks", "logger")


def check_output(output: Path) -> list[str]:
    """Check that files can be created and locked in a folder, or in the parent of a new one; leave none behind."""
    parent = closest_existing(output)
    try:
        if not parent.is_dir():
            raise NotADirectoryError(0, f"{parent} is a file")
        with tempfile.TemporaryDirectory(dir=parent, prefix=".can_write_") as folder, RunLock(Path(folder) / "lock"):
            return []
    except OSError as error:
        return [f"--output {output}: cannot write there ({error.strerror}); choose another folder with --output"]
    except UserError as error:
        return [str(error)]


def check_devices(runs: Sequence[Run], gpus: int | None) -> list[str]:
    """Check that each run's trainer requests as many GPUs as a run gets, if GPUs are assigned (not None)."""
    requested = {run.config["trainer"].get("devices") for run in runs}
    wrong = sorted(number for number in requested if isinstance(number, int) and number not in (-1, gpus))
    return [
        f"trainer.devices {number}: a run gets {gpus}; leave it out, and give --gpus {number}"
        for number in (wrong if gpus is not None else ())
    ]


def check_parts(runs: Sequence[Run], *, fresh: Sequence[Run]) -> tuple[list[str], dict[str, int]]:
    """Check the data of each row, and build its network, its loss and a trainer, each distinct one once.

    Networks are built on the meta device, without memory for their weights. Pretrained weights are downloaded now,
    because the node that launches has a network connection and compute nodes may have none.

    Args:
        runs: those to execute.
        fresh: those of them that start from scratch; the others have all weights in their checkpoint.

    Returns:
        Errors, one sentence for each distinct one, and the bytes of a checkpoint, by the row's name.
    """
    errors = _errors(runs, lambda run: [run.config["data"], _processes(run)], _check_data)
    errors += _errors(runs, _trainer_of, _check_trainer)
    sizes: dict[str, int] = {}
    for group in _groups(runs, _network_of):
        found, weights, buffers = _check_networks(group)
        errors += found
        sizes |= {run.spec.name: weights * _values_per_weight(run) + buffers for run in group}
    errors += _errors(fresh, lambda run: list(map(_arguments(run).get, ("encoder", "encoder_weights"))), _check_weights)
    errors += _errors(runs, lambda run: run.spec.evaluations, lambda run: [*map(parse_inferer, run.spec.evaluations)])
    first_runs: dict[str, Run] = {}
    for run, text in errors:
        first_runs.setdefault(text, run)
    return [f"{shown(run.spec.file)} ({run.spec.row}): {text}" for text, run in first_runs.items()], sizes


def check_space(runs: Sequence[Run], sizes: Mapping[str, int], output: Path) -> tuple[list[str], str]:
    """Check that the files that runs will write fit on the disk, with `sizes` from `check_parts`.

    Returns:
        Errors, if they do not fit, and the bytes that they take.
    """
    needed = sum(_remaining_bytes(run, sizes[run.spec.name]) for run in runs)
    free = shutil.disk_usage(closest_existing(output)).free
    need, have = (f"{count / 1e9:.1f} GB" for count in (needed, free))
    error = (
        f"--output {output}: the runs need about {need} (each its checkpoints `last`, `previous`, `best` and one being "
        f"written), but {have} are free; make room, or choose another --output"
    )
    return [error] if needed > free else [], f"{need} of {have} that are free"


def _groups(runs: Iterable[Run], key: Callable[[Run], Any]) -> list[list[Run]]:
    """Group runs with equal keys, such as a part of their configs or some of its values."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(key(run), default=str), []).append(run)
    return list(groups.values())


def _errors(runs: Iterable[Run], key: Callable[[Run], Any], check: Callable[[Run], object]) -> list[tuple[Run, str]]:
    """Errors of runs; of those with the same key only the first is checked."""
    errors = []
    for run, *_ in _groups(runs, key):
        try:
            check(run)
        except (UserError, ValueError, OSError) as error:
            errors.append((run, str(error)))
    return errors


def _arguments(run: Run) -> dict[str, Any]:
    return dict(run.config["model"].get("init_args") or {})


def _network_of(run: Run) -> list[Any]:
    arguments = {key: value for key, value in _arguments(run).items() if key not in TRAINING_ARGUMENTS}
    return [run.config["model"]["class_path"], arguments]


def _processes(run: Run) -> int:
    devices, nodes = run.config["trainer"].get("devices"), run.config["trainer"].get("num_nodes")
    count = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 1
    return max(1, count) * (nodes or 1)  # -1 is all devices of the machine, which may not be this one


def _check_data(run: Run) -> None:
    data: Any = build_data(run.config)
    processes, batch_size = _processes(run), getattr(data, "batch_size", None)
    if batch_size:
        batch_size_of_process(batch_size, processes)
    for stage in ("fit", "test"):
        data.setup(stage)


def _trainer_of(run: Run) -> dict[str, Any]:
    arguments = {key: value for key, value in run.config["trainer"].items() if key not in UNCHECKED_ARGUMENTS}
    return {**arguments, "default_root_dir": None, "profiler": None}


def _check_trainer(run: Run) -> None:
    if run.config["trainer"].get("fast_dev_run"):
        raise UserError(
            "trainer.fast_dev_run: leaves no checkpoint to test and compare; use --dry-run, or `beyondpixel fit`"
        )
    messages = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    messages.disabled = True  # such as whether this machine has GPUs
    try:
        Trainer(**_trainer_of(run), accelerator="cpu", logger=False, plugins=[LightningEnvironment()])
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"trainer: {error}") from error
    finally:
        messages.disabled = False


def _check_networks(runs: Sequence[Run]) -> tuple[list[tuple[Run, str]], int, int]:
    """Errors of runs with one network and of their losses, and the bytes of its weights and of its buffers."""
    try:
        module = _build_without_weights(runs[0].config)
    except (UserError, ValueError) as error:
        return [(runs[0], str(error))], 0, 0
    errors: list[tuple[Run, str]] = []
    if isinstance(module, SegmentationModule):
        errors = _errors(
            runs, lambda run: _arguments(run).get("loss"), lambda run: module.configure_loss(_arguments(run)["loss"])
        )
    weights = sum(value.numel() * value.element_size() for value in module.parameters())
    buffers = sum(value.numel() * value.element_size() for value in module.buffers())
    return errors, weights, buffers


def _values_per_weight(run: Run) -> int:
    """Values in a checkpoint for each weight: itself and SGD's momentum, or the two moments of another optimizer."""
    return 2 if _arguments(run).get("optimizer") is None else 3


def _build_without_weights(config: Mapping[str, Any]) -> LightningModule:
    with without_pretrained_weights():
        try:
            with torch.device("meta"):
                return build_all(config).module
        except (NotImplementedError, RuntimeError):  # its constructor computes with the weights
            return build_all(config).module


def _check_weights(run: Run) -> None:
    given = _arguments(run)
    if given.get("encoder_weights") is not None and "output_stride" in given:
        build_encoder(given["encoder"], output_stride=given["output_stride"], weights=given["encoder_weights"])


def _remaining_bytes(run: Run, checkpoint: int) -> int:
    present = sum(file.stat().st_size for file in (run.folder.path / "checkpoints").glob("*.ckpt"))
    return max(0, CHECKPOINTS * checkpoint + BYTES_BESIDE_CHECKPOINTS - present)
