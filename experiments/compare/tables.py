"""Rows as a table in the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from beyondpixel.experiments.compare.rows import Row

# axes first that ablations change most; those that are the same in all rows are left out of the printed table
SHOWN_AXES = ("dataset", "model", "encoder", "loss", "pooling", "df", "region_size", "memory", "max_steps")


def cells_of(rows: Sequence[Row], metric: str, *, with_axes: bool = True) -> tuple[list[str], list[list[str]]]:
    """Header and cells, as text. Scores between 0 and 1 are given in percent.

    Args:
        rows: from `collect_rows`.
        metric: the figure compared.
        with_axes: whether the axes in which the rows differ get columns.
    """
    several_tables = len({row.table for row in rows}) > 1
    axes = [axis for axis in SHOWN_AXES if with_axes and len({str(row.axes.get(axis)) for row in rows}) > 1]
    header = [
        "row",
        *axes,
        f"{metric} (%)",
        "range",
        "n",
        "Δ baseline",
        *(["published (%)"] if any(row.reference is not None for row in rows) else []),
        "images/s",
    ]
    body = []
    for row in rows:
        line = [f"{row.table}/{row.name}" if several_tables else row.name]
        line += ["–" if row.axes.get(axis) is None else str(row.axes[axis]) for axis in axes]
        line += [_mean(row), _range(row), _count(row)]
        line += ["–" if row.difference is None else f"{100 * row.difference:+.2f}"]
        if any(other.reference is not None for other in rows):
            line += ["–" if row.reference is None else f"{row.reference:.2f}"]
        speed = row.mean_of("train/images_per_s")
        line += ["–" if speed is None else f"{speed:.1f}"]
        body.append(line)
    return header, body


def as_terminal(rows: Sequence[Row], metric: str, console: Console) -> Table:
    """A table for the terminal; the highest mean is bold. A narrow terminal gets no columns of axes."""
    table = _table(rows, metric, with_axes=True)
    wanted = console.measure(table, options=console.options.update(width=1000)).maximum
    return table if wanted <= console.width else _table(rows, metric, with_axes=False)


def _table(rows: Sequence[Row], metric: str, *, with_axes: bool) -> Table:
    header, body = cells_of(rows, metric, with_axes=with_axes)
    best = max((row.mean for row in rows if row.mean is not None), default=None)
    table = Table(title=f"{metric} over {', '.join(sorted({row.table for row in rows}))}")
    for name in header:
        table.add_column(name, no_wrap=name.startswith(metric))  # in a narrow terminal anything else may be broken
    for row, line in zip(rows, body, strict=True):
        table.add_row(*line, style="bold" if row.mean is not None and row.mean == best else None)
    return table


def as_markdown(rows: Sequence[Row], metric: str) -> str:
    """A Markdown table."""
    header, body = cells_of(rows, metric)
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_csv(rows: Sequence[Row], metric: str) -> str:
    """One line a run, with every axis: what a plotting tool or a spreadsheet wants."""
    axes = list(rows[0].axes)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "seed", "status", metric, "published_percent", *axes, "git_commit", "folder"])
    for row in rows:
        for run in row.runs:
            value = run.summary.get(metric)
            writer.writerow(
                [row.table, row.name, run.record["seed"], run.state["status"], value, row.reference]
                + [run.record["axes"].get(axis) for axis in axes]
                + [run.record["git_commit"], run.path]
            )
    return text.getvalue()


def _mean(row: Row) -> str:
    if row.mean is None:
        return "–"
    return f"{100 * row.mean:.2f}" + (f" ± {100 * row.std:.2f}" if row.std is not None else "")


def _range(row: Row) -> str:
    return f"{100 * min(row.values):.2f} … {100 * max(row.values):.2f}" if len(row.values) > 1 else "–"


def _count(row: Row) -> str:
    return str(len(row.values)) + (f" (+{row.unfinished} unfinished)" if row.unfinished else "")
