"""Checks before anything starts, so that no job finds out after a night in a queue."""

from __future__ import annotations

import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule

from beyondpixel.experiments.build import build, build_data
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.lock import RunLock
from beyondpixel.experiments.plan import Run
from beyondpixel.experiments.yaml_files import shown
from beyondpixel.lightning_modules import SegmentationModule
from beyondpixel.lightning_modules.networks import build_encoder, without_pretrained_weights

# W&B's files, pictures, logs and scores of a run
BYTES_BESIDE_CHECKPOINTS = 50 * 10**6
# `last`, `previous`, `best`, and the one that is being written
CHECKPOINTS = 4
# arguments that change nothing about the network, and so need no further one to be built
OF_TRAINING = frozenset(inspect.signature(SegmentationModule.__init__).parameters)


def check_parts(runs: Sequence[Run], *, fresh: Iterable[Run]) -> tuple[list[str], dict[str, int]]:
    """Look for the data of each row, and build its network and its loss, each different one once.

    Networks are built on the meta device, without memory for their weights. Pretrained weights are fetched now, where
    the node that launches has a network and those that compute may have none.

    Args:
        runs: those that are to be done.
        fresh: those of them that start from nothing; the others have all weights in their checkpoint.

    Returns:
        What is wrong, a sentence for each different thing; and the bytes of a checkpoint, by the row's name.
    """
    rows = list({run.spec.name: run for run in runs}.values())
    fresh_rows = list({run.spec.name: run for run in fresh}.values())
    errors = _errors(rows, _data_key, _check_data)
    sizes: dict[str, int] = {}
    for group in _groups(rows, _network_key):
        found, size = _check_networks(group)
        errors += found
        sizes |= dict.fromkeys((run.spec.name for run in group), size)
    errors += _errors(fresh_rows, _weights_key, _check_weights)
    errors += _errors(rows, lambda run: run.spec.evaluations, _check_evaluations)
    first_rows: dict[str, Run] = {}
    for run, text in errors:
        first_rows.setdefault(text, run)
    return [f"{shown(run.spec.file)} ({run.spec.row}): {text}" for text, run in first_rows.items()], sizes


def check_output(output: Path) -> list[str]:
    """Whether files can be made and locked in a folder, or where it will be made; nothing is left behind."""
    place = _existing(output)
    try:
        if not place.is_dir():
            raise NotADirectoryError(0, f"{place} is a file")
        with tempfile.TemporaryDirectory(dir=place, prefix=".can_write_") as folder, RunLock(Path(folder) / "lock"):
            return []
    except OSError as error:
        reason = error.strerror or str(error)
        return [f"--output {output}: cannot write there ({reason}); choose another folder with --output"]
    except UserError as error:
        return [str(error)]


def bytes_to_write(runs: Iterable[Run], sizes: Mapping[str, int]) -> int:
    """What runs will write, at most, beside what is there.

    Args:
        runs: those that are to be done.
        sizes: bytes of a checkpoint, by the row's name.
    """
    return sum(_still_to_write(run, sizes.get(run.spec.name, 0)) for run in runs)


def check_space(needed: int, output: Path) -> list[str]:
    """Whether so many bytes fit on the disk."""
    free = free_bytes(output)
    if needed <= free:
        return []
    return [
        f"--output {output}: the runs need about {gigabytes(needed)} (each its checkpoints `last`, `previous`, "
        f"`best` and one being written), but {gigabytes(free)} are free; make room, or choose another --output"
    ]


def free_bytes(output: Path) -> int:
    """What is free where a folder is or will be made."""
    return shutil.disk_usage(_existing(output)).free


def gigabytes(count: int) -> str:
    """A number of bytes for a reader."""
    return f"{count / 1e9:.1f} GB"


def _groups(runs: Iterable[Run], key: Callable[[Run], Hashable]) -> list[list[Run]]:
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def _errors(runs: Iterable[Run], key: Callable[[Run], Hashable], check: Callable[[Run], None]) -> list[tuple[Run, str]]:
    """What is wrong with runs; of those with the same key only the first is checked."""
    errors = []
    for run, *_ in _groups(runs, key):
        try:
            check(run)
        except (UserError, ValueError, OSError) as error:
            errors.append((run, str(error)))
    return errors


def _arguments(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    return dict(config[part].get("init_args") or {})


def _processes(config: Mapping[str, Any]) -> int:
    devices, nodes = config["trainer"].get("devices"), config["trainer"].get("num_nodes")
    return (devices if isinstance(devices, int) else 1) * (nodes or 1)


def _data_key(run: Run) -> Hashable:
    return json.dumps([run.config["data"], _processes(run.config)], sort_keys=True, default=str)


def _network_key(run: Run) -> Hashable:
    arguments = {key: value for key, value in _arguments(run.config, "model").items() if key not in OF_TRAINING}
    return json.dumps([run.config["model"]["class_path"], arguments], sort_keys=True, default=str)


def _weights_key(run: Run) -> Hashable:
    arguments = _arguments(run.config, "model")
    return arguments.get("encoder"), arguments.get("encoder_weights")


def _loss_key(run: Run) -> Hashable:
    return json.dumps(_arguments(run.config, "model").get("loss"), sort_keys=True, default=str)


def _check_data(run: Run) -> None:
    data: Any = build_data(run.config)
    processes, batch_size = _processes(run.config), getattr(data, "batch_size", None)
    if batch_size and batch_size % processes:
        below = max(size for size in range(1, processes) if batch_size % size == 0)
        raise UserError(
            f"data.batch_size {batch_size} is the whole batch and cannot be divided among {processes} processes; use "
            f"{below} GPUs, or override it with --data.batch_size {batch_size // processes * processes or processes}"
        )
    for stage in ("fit", "test"):
        data.setup(stage)


def _check_networks(runs: Sequence[Run]) -> tuple[list[tuple[Run, str]], int]:
    """What is wrong with runs of one network and their losses; and the bytes of a checkpoint."""
    try:
        module = _build_without_weights(runs[0].config)
    except (UserError, ValueError) as error:
        return [(runs[0], str(error))], 0

    def check_loss(run: Run) -> None:
        if isinstance(module, SegmentationModule):
            module.configure_loss(_arguments(run.config, "model")["loss"])

    return _errors(runs, _loss_key, check_loss), _checkpoint_bytes(module)


def _build_without_weights(config: Mapping[str, Any]) -> LightningModule:
    with without_pretrained_weights():
        try:
            with torch.device("meta"):
                return build(config)[0]
        except (NotImplementedError, RuntimeError):  # its constructor computes with the weights
            return build(config)[0]


def _check_weights(run: Run) -> None:
    arguments = _arguments(run.config, "model")
    if arguments.get("encoder_weights") is not None and "output_stride" in arguments:
        build_encoder(
            arguments["encoder"], output_stride=arguments["output_stride"], weights=arguments["encoder_weights"]
        )


def _check_evaluations(run: Run) -> None:
    if run.spec.evaluations:
        from beyondpixel.experiments.inference.inferers import parse_inferer

        for words in run.spec.evaluations:
            parse_inferer(words)


def _checkpoint_bytes(module: LightningModule) -> int:
    """Weights, buffers, and the momentum of each weight."""
    weights = sum(value.numel() * value.element_size() for value in module.parameters())
    return 2 * weights + sum(value.numel() * value.element_size() for value in module.buffers())


def _still_to_write(run: Run, checkpoint: int) -> int:
    there = sum(file.stat().st_size for file in (run.folder.path / "checkpoints").glob("*.ckpt"))
    return max(0, CHECKPOINTS * checkpoint + BYTES_BESIDE_CHECKPOINTS - there)


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())
