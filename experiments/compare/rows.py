"""Runs to rows: seeds of one row averaged, differences to a baseline row of the same table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run_folder import RunFolder, find_runs


@dataclass(frozen=True)
class Row:
    """All seeds of one row of a table.

    Attributes:
        table: name of the table.
        name: name of the row.
        runs: one a seed, those with a value first.
        values: the metric of each run that has it.
        unfinished: how many runs have no value yet.
        difference: mean minus the baseline row's mean; None for the baseline itself and where there is none.
        reference: the published number, in percent, where the spec records one.
    """

    table: str
    name: str
    runs: tuple[RunFolder, ...]
    values: tuple[float, ...]
    unfinished: int
    difference: float | None
    reference: float | None

    @property
    def mean(self) -> float | None:
        """Mean over seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def axes(self) -> dict[str, Any]:
        """The axes, without the seed."""
        return {key: value for key, value in self.runs[0].record["axes"].items() if key != "seed"}

    def mean_of(self, figure: str) -> float | None:
        """Mean over seeds of another figure of the summaries."""
        return _mean(self.runs, figure)


def collect_rows(folders: Sequence[str | Path], *, metric: str, baseline: str | None = None) -> list[Row]:
    """The rows of all runs below the given folders.

    Args:
        folders: where to look.
        metric: a figure of summary.json, e.g. `test/mIoU`.
        baseline: the row that differences refer to; None takes each table's first row with the CE loss.

    Raises:
        UserError: if a folder does not exist, there are no runs, no run has the metric, or the baseline is not there.
    """
    missing = [str(folder) for folder in folders if not Path(folder).is_dir()]
    if missing:
        raise UserError(f"no such folder: {', '.join(missing)}; expected one that `beyondpixel launch` wrote to")
    runs = [run for folder in folders for run in find_runs(folder) if "axes" in run.record]
    if not runs:
        raise UserError(f"no runs below {', '.join(map(str, folders))}: expected folders with a run.json")
    known = sorted({figure for run in runs for figure in run.summary})
    if not any(metric in run.summary for run in runs):
        scores = [figure for figure in known if figure.startswith(("test/", "val/"))]
        raise UserError(f"no run has a {metric} yet; figures there are: {', '.join(scores or known) or 'none'}")
    grouped: dict[tuple[str, str], list[RunFolder]] = {}
    for run in dict.fromkeys(runs):
        grouped.setdefault((run.record["table"], run.record["row"]), []).append(run)
    if baseline is not None and not any(row == baseline for _, row in grouped):
        raise UserError(f"--baseline: no row named {baseline}; rows are {', '.join(row for _, row in grouped)}")
    means = {key: _mean(group, metric) for key, group in grouped.items()}
    rows = []
    for (table, name), group in grouped.items():
        base = _baseline_of(table, grouped, baseline)
        ours, theirs = means[table, name], means.get((table, base)) if base else None
        difference = ours - theirs if name != base and ours is not None and theirs is not None else None
        values = tuple(run.summary[metric] for run in group if metric in run.summary)
        reference = next((run.record["reference"]["value"] for run in group if run.record.get("reference")), None)
        ordered = tuple(sorted(group, key=lambda run: metric not in run.summary))
        rows.append(Row(table, name, ordered, values, len(group) - len(values), difference, reference))
    return rows


def _baseline_of(table: str, grouped: dict[tuple[str, str], list[RunFolder]], wanted: str | None) -> str | None:
    rows = [(row, group[0].record["axes"]["loss"]) for (name, row), group in grouped.items() if name == table]
    return next((row for row, loss in rows if row == wanted or (wanted is None and loss == "ce")), None)


def _mean(group: Sequence[RunFolder], metric: str) -> float | None:
    values = [run.summary[metric] for run in group if metric in run.summary]
    return statistics.fmean(values) if values else None
