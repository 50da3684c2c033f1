"""Runs as a pandas DataFrame: one line for each run and for each of its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from beyondpixel.experiments.axes import AXES, EVALUATION_AXES
from beyondpixel.experiments.compare.confounders import facts_of
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.image_counts import read_arrays
from beyondpixel.experiments.run.folder import RunFolder, find_runs


@dataclass(frozen=True)
class Runs:
    """Runs and evaluations found in some folders.

    Attributes:
        frame: one line per run, and one per evaluation of it, whose row is named `ROW + EVALUATION`. Columns:
            `table`, `row`, `seed`, `status`, `steps`, `commit`, `folder`, `training` (the folder of the trained run),
            `run` (the RunFolder that holds the scores), `evaluation` (its name, or None), `record`, `facts` (see
            `facts_of`), `reference`, `classes`; every axis (None where it does not apply); every score of summary.json
            (float, NaN if there is none yet).
        axes: names of the axes, without the seed.
        damaged: folder and problem of each run or evaluation that is skipped.
    """

    frame: pd.DataFrame
    axes: list[str]
    damaged: list[str]


def read_runs(folders: Sequence[str | Path]) -> Runs:
    """Read all runs at or below the given folders, each once; damaged ones and copies are listed in `damaged`.

    Raises:
        UserError: if a folder does not exist, or no run can be read.
    """
    lines: list[dict[str, Any]] = []
    damaged = []
    first: dict[str, Path] = {}  # folder of each run, by its id
    for run in find_runs(*folders):
        for folder in [run, *([] if run.damage else run.evaluations())]:
            try:
                line = _read(run, folder)
            except UserError as error:
                damaged.append(str(error))
                continue
            identity = str(line["record"].get("wandb_id") or run.path)
            if first.setdefault(identity, run.path) != run.path:
                damaged.append(f"{run.path}: a copy of the run {first[identity]}, which would count twice")
                break
            lines.append(line)
    if not lines:
        below = f"below {', '.join(map(str, folders))}"
        if damaged:
            raise UserError(f"no run {below} can be read:\n  " + "\n  ".join(damaged))
        raise UserError(f"no runs {below}: expected folders with a run.json")
    return _as_frame(lines, damaged)


def _as_frame(lines: list[dict[str, Any]], damaged: list[str]) -> Runs:
    summaries = [line.pop("summary") for line in lines]
    scores = list(dict.fromkeys(chain(*summaries)))
    recorded = dict.fromkeys(chain(*(line["record"]["axes"] for line in lines)))
    axes = [axis for axis in dict.fromkeys((*AXES, *recorded)) if axis in recorded and axis != "seed"]
    table = pd.DataFrame(lines, dtype=object)  # keep the types: pandas would convert 4 next to None to 4.0
    table[axes] = table[axes].where(table[axes].notna(), None)
    scores = [score for score in scores if score not in table]  # such as a learning rate logged as `lr`
    return Runs(table.join(pd.DataFrame(summaries, columns=scores, dtype=float)), axes, damaged)


def _read(run: RunFolder, folder: RunFolder) -> dict[str, Any]:
    """Read a line of the frame, with its scores as `summary`; the folder is that of the run or of an evaluation."""
    if folder.damage:
        raise UserError(f"{folder.path}: {folder.damage}")
    try:
        record = {**run.record, **folder.record}  # an evaluation has its own commit and environment
        evaluation = {} if folder is run else record["evaluation"]
        axes = {**record["axes"], **{axis: evaluation.get(axis) for axis in EVALUATION_AXES}}
        record["axes"] = axes
        arrays = read_arrays(folder.confusion_file, ("matrix", "class_names")) if folder.confusion_file.exists() else {}
        state = run.state
        return {
            "table": record["table"],
            "row": f"{record['row']} + {evaluation['words']}" if evaluation else record["row"],
            "seed": record["seed"],
            "status": state["status"],
            "steps": state.get("step"),
            "commit": record.get("git_commit"),
            "folder": str(folder.path),
            "training": str(run.path),
            "run": folder,
            "evaluation": evaluation.get("words"),
            "record": record,
            "facts": facts_of(run, record, arrays.get("matrix")),
            "reference": _reference_of(record.get("reference") or {}, evaluation.get("words")),
            "classes": [str(name) for name in arrays.get("class_names", ())],
            "summary": {name: float(value) for name, value in folder.summary.items()},
            **{axis: _groupable(value) for axis, value in axes.items() if axis != "seed"},
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder.path}: run.json or summary.json is damaged ({error!r})") from error


def _reference_of(reference: dict[str, Any], evaluation: str | None) -> dict[str, Any]:
    """The published number of a run, or of its evaluation; one of `crf` also counts for any number of steps."""
    if evaluation is None:
        return reference
    numbers = reference.get("evaluations") or {}
    own = numbers.get(evaluation) or numbers.get(evaluation.partition(":")[0]) or {}
    return {**{key: reference[key] for key in ("metric",) if key in reference}, **own}


def _groupable(value: Any) -> Any:
    """Convert an axis's value to one that can be grouped by."""
    return "×".join(map(str, value)) if isinstance(value, list | tuple) else value
