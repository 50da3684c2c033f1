"""Runs as a pandas DataFrame: one line for each run and for each of its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from beyondpixel.experiments.axes import AXES, EVALUATION_AXES
from beyondpixel.experiments.compare.confounders import facts_of
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.image_counts import read_arrays
from beyondpixel.experiments.run.folder import RunFolder, Status, find_runs


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
        scores: names of the scores.
        damaged: folder and problem of each run or evaluation that is skipped.
    """

    frame: pd.DataFrame
    axes: list[str]
    scores: list[str]
    damaged: list[str]


def read_runs(folders: Sequence[str | Path]) -> Runs:
    """Read all runs at or below the given folders, each once; damaged ones and copies are listed in `damaged`.

    Raises:
        UserError: if a folder does not exist, or no run can be read.
    """
    lines: list[dict[str, Any]] = []
    scores: dict[str, None] = {}
    damaged = []
    first: dict[str, Path] = {}  # folder of each run, by its id
    for run in find_runs(*folders):
        evaluations = [] if run.status == Status.DAMAGED else run.evaluations()
        for evaluation in (None, *evaluations):
            try:
                line, summary = _read(run, evaluation)
            except UserError as error:
                damaged.append(str(error))
                continue
            identity = str(line["record"].get("wandb_id") or run.path)
            if first.setdefault(identity, run.path) != run.path:
                damaged.append(f"{run.path}: a copy of the run {first[identity]}, which would count twice")
                break
            lines.append({**line, **summary})
            scores.update(dict.fromkeys(summary))
    if not lines:
        below = f"below {', '.join(map(str, folders))}"
        if damaged:
            raise UserError(f"no run {below} can be read:\n  " + "\n  ".join(damaged))
        raise UserError(f"no runs {below}: expected folders with a run.json")
    recorded = dict.fromkeys(axis for line in lines for axis in line["record"]["axes"] if axis != "seed")
    axes = [axis for axis in AXES if axis in recorded] + [axis for axis in recorded if axis not in AXES]
    frame = pd.DataFrame(lines, dtype=object)  # keep the types: pandas would convert 4 next to None to 4.0
    frame[axes] = frame[axes].where(frame[axes].notna(), None)
    frame = frame.astype(dict.fromkeys(scores, float)).copy()  # defragment: hundreds of columns were changed one by one
    return Runs(frame, axes, list(scores), damaged)


def _read(run: RunFolder, evaluation: RunFolder | None) -> tuple[dict[str, Any], dict[str, float]]:
    """Read a line of the frame and its scores."""
    folder = evaluation or run
    if folder.status == Status.DAMAGED:
        raise UserError(f"{folder.path}: {folder.damage}")
    try:
        record, evaluated = run.record, {}
        axes, reference = {**record["axes"]}, record.get("reference") or {}
        if evaluation is not None:
            record.update(evaluation.record)  # its own commit and environment
            evaluated = record["evaluation"]
            axes.update({axis: evaluated.get(axis) for axis in EVALUATION_AXES})
            of_evaluations = reference.get("evaluations") or {}
            kind = str(evaluated["words"]).partition(":")[0]  # a published number that names no steps, such as `crf`
            metric = {name: reference[name] for name in reference.keys() & {"metric"}}
            reference = {**metric, **(of_evaluations.get(evaluated["words"]) or of_evaluations.get(kind) or {})}
        summary = {name: float(value) for name, value in folder.summary.items()}
        arrays = read_arrays(folder.confusion_file, ("matrix", "class_names")) if folder.confusion_file.exists() else {}
        return {
            "table": record["table"],
            "row": f"{record['row']} + {evaluated['words']}" if evaluated else record["row"],
            "seed": record["seed"],
            "status": str(run.status),
            "steps": run.state.get("step"),
            "commit": record.get("git_commit"),
            "folder": str(folder.path),
            "training": str(run.path),
            "run": folder,
            "evaluation": evaluated.get("words"),
            "record": {**record, "axes": axes},
            "facts": facts_of(run, {**record, "axes": axes}, arrays.get("matrix")),
            "reference": reference,
            "classes": [str(name) for name in arrays.get("class_names", ())],
            **{axis: _groupable(value) for axis, value in axes.items() if axis != "seed"},
        }, summary
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder.path}: run.json or summary.json is damaged ({error!r})") from error


def _groupable(value: Any) -> Any:
    """Convert an axis's value to one that can be grouped by."""
    return "×".join(map(str, value)) if isinstance(value, list | tuple) else value
