"""Rows as a table in the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from beyondpixel.experiments.axes import AXES, METHOD_AXES
from beyondpixel.experiments.compare.rows import Row
from beyondpixel.experiments.compare.units import NOTHING, unit_of

MARK = "†"


@dataclass(frozen=True)
class Cells:
    """A table as text, for any format.

    Attributes:
        title: what it shows.
        header: names of the columns.
        body: one line a row.
        best: indices of the lines with the highest score of their table.
        notes: what the marks in the first column stand for.
    """

    title: str
    header: list[str]
    body: list[list[str]]
    best: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def axes_that_differ(rows: Sequence[Row]) -> list[str]:
    """The axes in which some rows differ, in the order of `axes_of`; those that it does not know, last."""
    recorded = dict.fromkeys(axis for row in rows for axis in row.axes)
    ordered = [axis for axis in AXES if axis in recorded] + [axis for axis in recorded if axis not in AXES]
    return [axis for axis in ordered if len({str(row.axes.get(axis)) for row in rows}) > 1]


def shown_axes(rows: Sequence[Row]) -> list[str]:
    """The axes that get a column: all that differ, but those that merely tell which rows have the RMI loss or a memory.

    Where RMI's `df` is 4 in each row that has one, a column for it says no more than the loss's column.
    """
    telling = []
    for axis in axes_that_differ(rows):
        values = {str(row.axes[axis]) for row in rows if row.axes.get(axis) is not None}
        if axis not in METHOD_AXES or len(values) > 1:
            telling.append(axis)
    return telling


def main_cells(rows: Sequence[Row], metric: str, *, narrow: bool = False) -> Cells:
    """One line a row: axes, mean and spread over seeds, difference to the baseline, the published number, and a column
    for each further figure that the rows hold.

    Args:
        rows: from `collect_rows`.
        metric: the figure compared.
        narrow: leave out the columns of axes and the range, which the rows' names and the deviation stand for.
    """
    several_tables = len({row.table for row in rows}) > 1
    axes = [] if narrow else shown_axes(rows)
    unit = unit_of(metric)
    published = any(row.reference is not None for row in rows)
    further = rows[0].further if rows else ()
    stage = metric[: metric.find("/") + 1]
    header = [
        "row",
        *axes,
        f"{metric}{unit.label}",
        *([] if narrow else ["range"]),
        "n",
        "Δ baseline",
        "95 % interval",
        *(["published (%)"] if published else []),
        # in the main column's header it is said already whether this is the test
        *(f"{figure.removeprefix(stage)}{unit_of(figure).label}" for figure in further),
        "images/s",
    ]
    body, notes = [], []
    for row in rows:
        name = f"{row.table}/{row.name}" if several_tables else row.name
        if row.remarks:
            notes.append(f"{MARK} {name}: {'; '.join(row.remarks)}")
        line = [f"{name} {MARK}" if row.remarks else name]
        line += [NOTHING if row.axes.get(axis) is None else str(row.axes[axis]) for axis in axes]
        line += [
            unit.mean(row.mean, row.std),
            *([] if narrow else [unit.range(row.values)]),
            str(len(row.values)) + (f" (+{row.unfinished} unfinished)" if row.unfinished else ""),
            unit.difference(row.difference),
            unit.interval(row.interval),
            *([_published(row)] if published else []),
            *(unit_of(figure).mean(row.mean_of(figure), row.std_of(figure)) for figure in row.further),
        ]
        speed = row.mean_of("train/images_per_s")
        line.append(NOTHING if speed is None else f"{speed:.1f}")
        body.append(line)
    title = f"{metric} over {', '.join(sorted({row.table for row in rows}))}"
    return Cells(title, header, body, best_rows(rows, metric), tuple(notes))


def best_rows(rows: Sequence[Row], metric: str) -> tuple[int, ...]:
    """Indices of the rows with the best mean of their table: the highest score, or the lowest loss."""
    if unit_of(metric).scale == 1.0 and "loss" not in metric:
        return ()  # whether more steps, seconds or images a second are better is not ours to say
    best: dict[str, float] = {}
    choose = min if "loss" in metric else max
    for row in rows:
        if row.mean is not None:
            best[row.table] = choose(best.get(row.table, row.mean), row.mean)
    return tuple(index for index, row in enumerate(rows) if row.mean is not None and row.mean == best[row.table])


def as_terminal(rows: Sequence[Row], metric: str, console: Console) -> Group:
    """A table for the terminal; the highest mean is bold. A narrow one gets fewer columns, and each table alone."""
    drawn = [main_cells(rows, metric)]
    if console.measure(rich_table(drawn[0]), options=console.options.update(width=1000)).maximum > console.width:
        tables = dict.fromkeys(row.table for row in rows)
        drawn = [main_cells([row for row in rows if row.table == table], metric, narrow=True) for table in tables]
    parts: list[RenderableType] = []
    for cells in drawn:
        parts += [rich_table(cells), *map(Text, cells.notes)]
    return Group(*parts)


def rich_table(cells: Cells) -> Table:
    """Cells for the terminal."""
    table = Table(title=escape(cells.title))
    for name in cells.header:
        # in a narrow terminal anything else may be broken, but nothing is cut off
        table.add_column(escape(name), no_wrap=name.startswith(("test/", "val/")), overflow="fold")
    for index, line in enumerate(cells.body):
        table.add_row(*map(escape, line), style="bold" if index in cells.best else None)
    return table


def as_markdown(cells: Cells) -> str:
    """A Markdown table with its notes below."""
    lines = [cells.header, ["---"] * len(cells.header), *cells.body]
    text = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
    return text + "".join(f"\n{note}\n" for note in cells.notes)


def as_csv(rows: Sequence[Row], metric: str) -> str:
    """One line a run, with every axis: what a plotting tool or a spreadsheet wants."""
    axes = list(dict.fromkeys(axis for row in rows for axis in row.axes))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = [metric, *(rows[0].further if rows else ())]
    of_run = ["table", "row", "seed", "status", *figures]
    of_row = ["row_difference", "row_interval_low", "row_interval_high", "published_percent", "also_differs_in"]
    writer.writerow([*of_run, *of_row, *axes, "git_commit", "folder"])
    for row in rows:
        for run in row.runs:
            writer.writerow(
                [row.table, row.name, run.record["seed"], run.state["status"], *map(run.summary.get, figures)]
                + [row.difference, *(row.interval or (None, None)), row.reference, "; ".join(row.remarks)]
                + [run.record["axes"].get(axis) for axis in axes]
                + [run.record["git_commit"], run.path]
            )
    return text.getvalue()


def _published(row: Row) -> str:
    if row.reference is None:
        return NOTHING
    return f"{row.reference:.2f}" + ("" if row.reference_difference is None else f" ({row.reference_difference:+.2f})")
