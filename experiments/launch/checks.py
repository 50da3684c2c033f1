"""What can go wrong is found before anything starts, and told at once."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from beyondpixel.datamodules.datasets.errors import DataError
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.protocol import Protocol
from beyondpixel.experiments.launch.cells import Cell
from beyondpixel.experiments.launch.evaluations import place_of_evaluate
from beyondpixel.experiments.training_cli import PROTOCOL_WORDS, SegmentationCLI, own_error
from beyondpixel.lightning_modules.networks import without_pretrained_weights

# W&B's files, pictures, logs and scores of a run
BYTES_BESIDE_CHECKPOINTS = 50 * 10**6
# `last`, `best`, and the one that is being written
CHECKPOINTS = 3


def check_parts(cells: Sequence[Cell], mistakes: list[str], *, anew: bool = False) -> dict[str, int]:
    """Build the model and look for the data of every row, each different one once.

    Encoders that do not exist, cannot be dilated to the asked stride or whose weights cannot be had, and data sets
    that are not there, are found here rather than by a job that has waited for a night. Pretrained weights are
    fetched now, where the node that launches has a network and those that compute may have none. Of an evaluation
    also its words are checked, and that the package of its post-processing is installed.

    Args:
        cells: those that are to run.
        mistakes: takes what is wrong, with the spec's file and line.
        anew: whether checkpoints that are there will be replaced instead of resumed, which needs no other weights.

    Returns:
        The bytes of one checkpoint, by the spec's name; 0 for an evaluation, which makes none.
    """
    sizes: dict[str, int] = {}
    known: dict[tuple[bool, str], int | Exception] = {}
    begin = {cell.spec.name for cell in cells if anew or not cell.folder.last_checkpoint.exists()}
    trained = {cell.spec.name for cell in cells if cell.source is None}
    for cell in cells:
        if cell.spec.name in sizes:
            continue
        if cell.spec.evaluate is not None:
            _check_protocol(cell, mistakes)
            sizes[cell.spec.name] = 0
            if cell.spec.evaluate["run"] in trained:
                continue
        # whose checkpoint is there already
        resumed = cell.source is not None or cell.spec.name not in begin
        key = (resumed, _parts_of(cell.config))
        if key not in known:
            try:
                with without_pretrained_weights() if resumed else nullcontext():
                    known[key] = _checkpoint_bytes(_build(cell.config))
            except (UserError, ValueError) as error:
                known[key] = error
        found = known[key]
        sizes[cell.spec.name] = found if isinstance(found, int) and cell.source is None else 0
        if not isinstance(found, int):
            said = str(own_error(found) or found)
            part = ("data", "init_args", "root") if isinstance(found, DataError) else ("model", "init_args", "encoder")
            mistakes.append(f"{cell.spec.origin.place_of_complaint(said, otherwise=part)}: {said}")
    return sizes


def check_output(output: Path, mistakes: list[str]) -> bool:
    """Whether files can be made in a folder, or where it will be made; nothing is left behind."""
    place = _existing(output)
    try:
        if not place.is_dir():
            raise NotADirectoryError(f"{place} is a file")
        with tempfile.TemporaryDirectory(dir=place, prefix=".can_write_"):
            return True
    except OSError as error:
        reason = error.strerror or str(error)
        mistakes.append(f"--output {output}: cannot write there ({reason}); choose another folder with --output")
        return False


def check_space(cells: Sequence[Cell], sizes: Mapping[str, int], output: Path, mistakes: list[str]) -> None:
    """Whether what the runs will write fits on the disk.

    Args:
        cells: those that are to run.
        sizes: bytes of a checkpoint, by the spec's name; 0 for an evaluation, which makes none.
        output: where they write.
        mistakes: takes the sentence that says what is needed and what is there.
    """
    needed = sum(_still_to_write(cell, sizes[cell.spec.name]) for cell in cells)
    free = shutil.disk_usage(_existing(output)).free
    if needed > free:
        mistakes.append(
            f"--output {output}: {len(cells)} runs need about {_gigabytes(needed)} (each its checkpoints `last` and "
            f"`best` and one being written), but {_gigabytes(free)} are free; make room, or choose another --output"
        )


def _check_protocol(cell: Cell, mistakes: list[str]) -> None:
    words = {word: value for word, value in (cell.spec.evaluate or {}).items() if word != "run"}
    try:
        Protocol.parse(**words)
    except UserError as error:  # which speaks of options of the command line
        said = re.sub(rf"--({'|'.join(PROTOCOL_WORDS)})", r"evaluate.\1", str(error))
        mistakes.append(f"{place_of_evaluate(cell.spec)}: {said}")


class _Builder(SegmentationCLI):
    """Builds model and data of a config, and starts nothing."""

    def _set_seed(self) -> None:
        """A check draws no random number that a run would miss."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """None that would look for the devices of the machine that is to compute."""
        return Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


def _build(config: dict[str, Any]) -> LightningModule:
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)  # which devices that trainer found is of no interest
    try:
        cli = _Builder(args=config, run=False)
        for stage in ("fit", "test"):
            cli.datamodule.setup(stage)
    finally:
        logger.setLevel(level)
    model: LightningModule = cli.model
    return model


def _parts_of(config: Mapping[str, Any]) -> str:
    """What decides whether model and data can be built; the loss was built when the config was resolved."""
    model = {**config["model"]}
    arguments = dict(model.get("init_args") or {})
    if isinstance(arguments.get("loss"), str | dict):
        arguments.pop("loss")
    data = {**config["data"], "init_args": {**(config["data"].get("init_args") or {}), "seed": None}}
    return json.dumps([{**model, "init_args": arguments}, data], sort_keys=True, default=str)


def _checkpoint_bytes(model: LightningModule) -> int:
    """Weights, buffers, and the momentum of each weight."""
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    return 2 * weights + sum(value.numel() * value.element_size() for value in model.buffers())


def _still_to_write(cell: Cell, checkpoint: int) -> int:
    there = sum(file.stat().st_size for file in (cell.folder.path / "checkpoints").glob("*.ckpt"))
    return max(0, CHECKPOINTS * checkpoint + BYTES_BESIDE_CHECKPOINTS - there)


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
