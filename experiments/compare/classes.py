"""The score of each class, rows of the comparison side by side."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence

from beyondpixel.experiments.compare.rows import Row
from beyondpixel.experiments.compare.tables import Cells
from beyondpixel.experiments.compare.units import unit_of
from beyondpixel.experiments.errors import UserError


def class_names(rows: Sequence[Row], metric: str) -> list[str]:
    """The classes whose IoU the runs have logged, in their own order.

    Args:
        rows: from `collect_rows`.
        metric: the figure compared; its stage (`test` or `val`) says which scores are meant.

    Raises:
        UserError: if there are none.
    """
    prefix = f"{metric.partition('/')[0]}/IoU/"
    figures = dict.fromkeys(figure for row in rows for run in row.finished for figure in run.summary)
    names = [figure.removeprefix(prefix) for figure in figures if figure.startswith(prefix)]
    if not names:
        raise UserError(f"no run has logged a {prefix}<class>: --per-class needs runs that have been tested")
    return names


def class_cells(rows: Sequence[Row], metric: str) -> Cells:
    """One line a class, one column a row: mean ± standard deviation over seeds, and the difference to the baseline.

    Args:
        rows: from `collect_rows`.
        metric: as for `class_names`.
    """
    stage = metric.partition("/")[0]
    several_tables = len({row.table for row in rows}) > 1
    scored = [row for row in rows if row.values]
    unit = unit_of(f"{stage}/IoU")
    baselines = {row.table: row for row in scored if row.is_baseline}
    body = []
    for name in class_names(rows, metric):
        figure = f"{stage}/IoU/{name}"
        line = [name]
        for row in scored:
            values = [run.summary[figure] for run in row.finished if figure in run.summary]
            mean = statistics.fmean(values) if values else None
            cell = unit.mean(mean, statistics.stdev(values) if len(values) > 1 else None)
            base = baselines[row.table].mean_of(figure) if row.table in baselines and not row.is_baseline else None
            line.append(cell + (f" ({unit.difference(mean - base)})" if mean is not None and base is not None else ""))
        body.append(line)
    names = [f"{row.table}/{row.name}" if several_tables else row.name for row in scored]
    return Cells(f"{stage} IoU of each class (%), difference to the baseline", ["class", *names], body)


def class_csv(rows: Sequence[Row], metric: str) -> str:
    """One line for each run and class."""
    stage = metric.partition("/")[0]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "seed", "class", "IoU", "folder"])
    for row in rows:
        for run in row.finished:
            for name in class_names(rows, metric):
                value = run.summary.get(f"{stage}/IoU/{name}")
                writer.writerow([row.table, row.name, run.record["seed"], name, value, run.path])
    return text.getvalue()
