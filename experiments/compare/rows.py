"""Runs to rows: seeds of one row averaged, differences to a baseline row of the same table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beyondpixel.experiments.axes import EVALUATION_AXES
from beyondpixel.experiments.bootstrap import Interval
from beyondpixel.experiments.compare.differences import remarks
from beyondpixel.experiments.compare.intervals import Intervals
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
        interval: 95 % bootstrap interval of the difference over test images; None where it cannot be told.
        reference: the published number, in percent, where the spec records one for this metric.
        reference_difference: the published number minus the one published for the baseline.
        remarks: what else the row differs in from its baseline, so that the difference is not owed to the axes alone.
        is_baseline: whether differences refer to this row.
        further: names of other figures that are shown beside the metric.
    """

    table: str
    name: str
    runs: tuple[RunFolder, ...]
    values: tuple[float, ...]
    unfinished: int
    difference: float | None = None
    interval: Interval | None = None
    reference: float | None = None
    reference_difference: float | None = None
    remarks: tuple[str, ...] = ()
    is_baseline: bool = False
    further: tuple[str, ...] = ()

    @property
    def finished(self) -> tuple[RunFolder, ...]:
        """The runs that have a value, in the order of `values`."""
        return self.runs[: len(self.values)]

    @property
    def mean(self) -> float | None:
        """Mean over seeds."""
        return _mean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return _std(self.values)

    @property
    def axes(self) -> dict[str, Any]:
        """The axes, without the seed."""
        return {key: value for key, value in self.runs[0].record["axes"].items() if key != "seed"}

    def mean_of(self, figure: str) -> float | None:
        """Mean over seeds of any figure of the summaries."""
        return _mean(_values(self.runs, figure))

    def std_of(self, figure: str) -> float | None:
        """Its sample standard deviation over seeds; None for fewer than two."""
        return _std(_values(self.runs, figure))


def collect_rows(
    folders: Sequence[str | Path], *, metric: str, baseline: str | None = None, further: Sequence[str] = ()
) -> list[Row]:
    """The rows of all runs below the given folders, table by table, the baseline row first.

    Args:
        folders: where to look.
        metric: a figure of summary.json, e.g. `test/mIoU`.
        baseline: the row that differences refer to, `ROW` of each table or `TABLE/ROW` for all tables; None takes each
            table's first row with the CE loss that is tested without post-processing.
        further: other figures to show beside it.

    Raises:
        UserError: if a folder does not exist, there are no runs, no run has the metric or one of the further figures,
            or the baseline is not there.
    """
    grouped = _grouped(_find(folders, [metric, *further]))
    if baseline is not None and not any(baseline in (row, f"{table}/{row}") for table, row in grouped):
        raise UserError(f"--baseline: no row named {baseline}; rows are {', '.join(row for _, row in grouped)}")
    intervals = Intervals(metric)
    rows = []
    for (table, name), group in grouped.items():
        base_key = _baseline_of(table, grouped, baseline)
        base = [run for run in grouped.get(base_key or ("", ""), []) if metric in run.summary]
        finished = [run for run in group if metric in run.summary]
        rest = [run for run in group if metric not in run.summary]
        values, base_values = _values(finished, metric), _values(base, metric)
        is_baseline = (table, name) == base_key
        compared = bool(values) and bool(base_values) and not is_baseline
        reference, base_reference = _reference(group, metric), _reference(base, metric)
        published = reference is not None and base_reference is not None and not is_baseline
        rows.append(
            Row(
                table,
                name,
                runs=(*finished, *rest),
                values=values,
                unfinished=len(rest),
                difference=statistics.fmean(values) - statistics.fmean(base_values) if compared else None,
                interval=intervals.of_difference(base, finished) if compared else None,
                reference=reference,
                reference_difference=reference - base_reference if published else None,  # type: ignore[operator]
                remarks=remarks(finished, [] if is_baseline else base),
                is_baseline=is_baseline,
                further=tuple(further),
            )
        )
    tables = list(dict.fromkeys(row.table for row in rows))
    return sorted(rows, key=lambda row: (tables.index(row.table), not row.is_baseline))


def _find(folders: Sequence[str | Path], figures: Sequence[str]) -> list[RunFolder]:
    missing = [str(folder) for folder in folders if not Path(folder).is_dir()]
    if missing:
        raise UserError(f"no such folder: {', '.join(missing)}; expected one that `beyondpixel launch` wrote to")
    found = {run.path.resolve(): run for folder in folders for run in find_runs(folder) if "axes" in run.record}
    if not found:
        raise UserError(f"no runs below {', '.join(map(str, folders))}: expected folders with a run.json")
    known = sorted({figure for run in found.values() for figure in run.summary})
    unknown = [figure for figure in figures if figure not in known]
    if unknown:
        scores = [figure for figure in known if figure.startswith(("test/", "val/"))]
        raise UserError(f"no run has a {unknown[0]} yet; figures there are: {', '.join(scores or known) or 'none'}")
    return list(found.values())


def _grouped(runs: Sequence[RunFolder]) -> dict[tuple[str, str], list[RunFolder]]:
    grouped: dict[tuple[str, str], list[RunFolder]] = {}
    for run in runs:
        grouped.setdefault((run.record["table"], run.record["row"]), []).append(run)
    return grouped


def _baseline_of(
    table: str, grouped: Mapping[tuple[str, str], list[RunFolder]], wanted: str | None
) -> tuple[str, str] | None:
    """Table and name of the row that a table's differences refer to: its own, unless another table's is asked for."""
    if wanted is None:
        own = (key for key, group in grouped.items() if key[0] == table and _is_plain_ce(group[0].record))
        return next(own, None)
    return next(
        (key for key in grouped if wanted in ("/".join(key), key[1]) and (key[0] == table or "/" in wanted)), None
    )


def _is_plain_ce(record: Mapping[str, Any]) -> bool:
    """Trained with the CE loss and tested as it is, not with a CRF, say."""
    return bool(record["axes"]["loss"] == "ce") and all(record["axes"].get(axis) is None for axis in EVALUATION_AXES)


def _reference(group: Sequence[RunFolder], metric: str) -> float | None:
    """The published number, unless it is one of another metric."""
    for run in group:
        reference = run.record.get("reference")
        if reference and reference.get("metric", metric) in (metric, metric.rpartition("/")[2]):
            return float(reference["value"])
    return None


def _values(runs: Sequence[RunFolder], figure: str) -> tuple[float, ...]:
    return tuple(run.summary[figure] for run in runs if figure in run.summary)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
