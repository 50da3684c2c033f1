"""Cells that train nothing: what they need of the run that they test, and whether a finished one is still true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beyondpixel.experiments.checkpoint_files import checksum
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.cells import Cell
from beyondpixel.experiments.layers import shown
from beyondpixel.experiments.spec_files import read_yaml
from beyondpixel.experiments.specs import RUNS, Spec
from beyondpixel.experiments.starting import differences

# what may differ between a training and an evaluation of what was trained: where they run, and where the data lie
PLACES = (
    *("trainer.default_root_dir", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("data.init_args.root", "data.init_args.num_workers"),
)


def place_of_evaluate(spec: Spec, *keys: str) -> str:
    """File and line of a row's `evaluate`, or of a key below it."""
    return read_yaml(spec.file).place_of("evaluate", *keys)


def launch_name(spec: Spec, name: str | None = None) -> str:
    """What a row, or another that it names as `TABLE/ROW`, is called in a command."""
    own_table = spec.file.parent.parent / (name or spec.name)
    if spec.file.is_relative_to(RUNS) or not own_table.parent.is_dir():
        return name or spec.name
    return shown(own_table)


def other_settings(cell: Cell) -> list[str]:
    """What a finished evaluation was asked to do otherwise than this cell is, a line each."""
    folder = cell.folder
    asked = differences({"evaluate": folder.record.get("evaluate")}, {"evaluate": cell.spec.evaluate})
    return [*asked, *differences(folder.config, cell.config)]


def tested_another_training(cell: Cell) -> bool:
    """Whether the source has been trained anew since; no where that cannot be told, because a checkpoint is gone."""
    assert cell.source is not None
    tested = cell.folder.record.get("evaluation", {}).get("checkpoint")
    there = checksum(cell.source.last_checkpoint)
    return tested is not None and there is not None and tested != there


def has_result(cell: Cell) -> bool:
    """Whether a finished evaluation lies in a cell's folder that is the one asked for."""
    return cell.folder.state["status"] == "done" and not other_settings(cell) and not tested_another_training(cell)


def refuse_source(cell: Cell) -> None:
    """Raise an error if the source, which is not part of the launch, cannot be tested.

    Raises:
        UserError: if it is not trained, was trained with another config, or its checkpoint is gone; with what to do.
    """
    assert cell.source is not None
    place = f"{place_of_evaluate(cell.spec, 'run')}: evaluate.run"
    source, status = cell.source, cell.source.state["status"]
    train = f"beyondpixel launch {launch_name(cell.spec, cell.spec.evaluate['run'])}"  # type: ignore[index]
    if status != "done":
        known = {"new": "has not been trained", "failed": "failed"}.get(status, f"is not finished (it is {status})")
        again = " --retry-failed" if status == "failed" else ""
        raise UserError(
            f"{place}: {cell.source_name} {known} in {source.path}, and this row tests its checkpoint; launch it "
            f"first, or both together: {train} {launch_name(cell.spec)} --seeds {cell.seed}{again}, with the other "
            "options of this launch"
        )
    wanted = _without_new_keys(cell.config, source.config)
    changed = [text for text in differences(source.config, wanted) if text.partition(" was ")[0] not in PLACES]
    if changed:
        raise UserError(
            f"{place}: {source.path} was trained with another config ({'; '.join(changed[:5])}); give the options that "
            f"it was trained with, or train it anew: {train} --seeds {cell.seed} --overwrite"
        )
    if not source.last_checkpoint.exists():
        raise UserError(
            f"{place}: {source.last_checkpoint} is gone, which this row tests; put it back, or train it anew: "
            f"{train} --seeds {cell.seed} --overwrite"
        )


def _without_new_keys(config: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the keys that the code had not yet when the old one was written: nobody could choose there."""
    return {
        key: _without_new_keys(value, old[key])
        if isinstance(value, Mapping) and isinstance(old[key], Mapping)
        else value
        for key, value in config.items()
        if key in old
    }
