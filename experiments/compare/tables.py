"""A comparison as tables of text, for the terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from beyondpixel.experiments.axes import EVALUATION_AXES, METHOD_AXES
from beyondpixel.experiments.bootstrap import RESAMPLES
from beyondpixel.experiments.compare.rank_order import rank_order
from beyondpixel.experiments.compare.rows import ROW, Comparison
from beyondpixel.experiments.compare.units import NOTHING, Unit, best, is_loss, unit_of
from beyondpixel.experiments.errors import UserError

MARK = "†"
SPEED = "train/images_per_s"
# in one pass, so that the characters of a replacement are not replaced again
_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': "''",
        "±": r"$\pm$",
        "Δ": r"$\Delta$",
        "ρ": r"$\rho$",
        "λ": r"$\lambda$",
        "×": r"$\times$",
        "†": r"$^\dagger$",
        "…": r"\ldots{}",
        "–": "--",
        "−": "$-$",
    }
)


@dataclass(frozen=True)
class Table:
    """A table as text, for any format.

    Attributes:
        title: what it shows.
        cells: the text, one line per row.
        best: positions of the lines with the best score of their table.
        notes: information that is needed to read it.
    """

    title: str
    cells: pd.DataFrame
    best: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def differing_axes(rows: pd.DataFrame, axes: list[str]) -> list[str]:
    """The axes in which some rows differ."""
    return [axis for axis in axes if rows[axis].map(str).nunique() > 1]


def main_table(comparison: Comparison, *, narrow: bool = False) -> Table:
    """One line per row; a narrow table has no axes, range and speed."""
    rows, metric = comparison.rows.assign(name=_names(comparison)), comparison.metric
    axes = [] if narrow else _axes_with_a_column(rows, comparison.axes)
    cells = pd.DataFrame([_cells(line, metric, axes) for line in rows.to_dict("records")])
    if rows["published"].isna().all():
        cells = cells.drop(columns="published (%)")
    stage = metric[: metric.find("/") + 1]
    for score in comparison.also:
        unit = unit_of(score)
        # the main column's header already has the stage
        header = f"{score.removeprefix(stage)}{unit.label}"
        cells[header] = [unit.mean(*pair) for pair in comparison.statistics(score).to_numpy()]
    if SPEED in comparison.runs:
        cells["images/s"] = comparison.statistics(SPEED)["mean"].map(Unit(scale=1.0, label="", digits=1).number)
    if narrow:
        cells = cells.drop(columns=["range", "images/s"], errors="ignore")
    title = f"{metric} over {', '.join(comparison.tables)}"
    return Table(title, cells, best_rows(comparison), _notes(comparison, rows))


def _axes_with_a_column(rows: pd.DataFrame, axes: list[str]) -> list[str]:
    """The axes in which rows differ, without those of an evaluation, which are in the row's name.

    A method's axis with one value, such as the same DF in all rows with RMI, adds nothing to the column of the loss.
    """
    shown = [axis for axis in differing_axes(rows, axes) if axis not in EVALUATION_AXES]
    return [axis for axis in shown if axis not in METHOD_AXES or rows[axis].dropna().map(str).nunique() > 1]


def _cells(line: Mapping[str, Any], metric: str, axes: list[str]) -> dict[str, str]:
    """The text of a row in each column."""
    unit, percent = unit_of(metric), Unit(scale=1.0, label="", digits=2)
    return {
        "row": f"{line['name']} {MARK}" if line["confounders"] else line["name"],
        **{axis: NOTHING if line[axis] is None else str(line[axis]) for axis in axes},
        f"{metric}{unit.label}": unit.mean(line["mean"], line["std"]),
        "range": f"{unit.number(line['min'])} … {unit.number(line['max'])}" if line["n"] > 1 else NOTHING,
        "n": f"{line['n']} (+{line['unfinished']} unfinished)" if line["unfinished"] else str(line["n"]),
        "Δ baseline": unit.difference(line["difference"]),
        "95 % interval": unit.interval(line["difference_low"], line["difference_high"]),
        "published (%)": percent.number(line["published"]) + percent.change(line["published_difference"]),
    }


def class_table(comparison: Comparison) -> Table:
    """One line per class, one column per row: mean ± standard deviation over seeds, and difference to the baseline.

    Raises:
        UserError: if no run has logged the IoU of classes.
    """
    prefix = class_prefix(comparison)
    rows, unit = comparison.rows, unit_of(prefix)
    body = []
    for score in (column for column in comparison.runs if str(column).startswith(prefix)):
        means, stds = (comparison.statistics(score)[name] for name in ("mean", "std"))
        base = means.where(rows["is_baseline"]).groupby(rows["table"]).transform("first")
        changes = (means - base).where(~rows["is_baseline"])
        texts = [
            unit.mean(mean, std) + unit.change(change) for mean, std, change in zip(means, stds, changes, strict=True)
        ]
        body.append([score.removeprefix(prefix), *texts])
    cells = pd.DataFrame(body, columns=["class", *_names(comparison)])
    scored = [0, *(position + 1 for position, n in enumerate(rows["n"]) if n)]
    stage = prefix.partition("/")[0]
    return Table(f"{stage} IoU of each class (%), difference to the baseline", cells.iloc[:, scored])


def class_prefix(comparison: Comparison) -> str:
    """Prefix of the names of the classes' IoU.

    Raises:
        UserError: if no run has logged the IoU of classes.
    """
    prefix = f"{comparison.metric.partition('/')[0]}/IoU/"
    if not any(str(column).startswith(prefix) for column in comparison.runs):
        raise UserError(f"no run has logged a {prefix}<class>: --per-class needs runs that have been tested")
    return prefix


def best_rows(comparison: Comparison) -> list[int]:
    """Positions of the rows with the best mean of their table: the highest score, or the lowest loss."""
    if unit_of(comparison.metric).scale == 1.0 and not is_loss(comparison.metric):
        return []  # whether more steps, seconds or images per second are better depends on the question
    means = comparison.rows.groupby("table")["mean"]
    extremes = means.transform("min" if is_loss(comparison.metric) else "max")
    return [position for position, is_best in enumerate(extremes == comparison.rows["mean"]) if is_best]


def as_markdown(table: Table) -> str:
    """Format a table as Markdown, with its notes below."""
    lines = [table.cells.columns, ["---"] * len(table.cells.columns), *table.cells.to_numpy()]
    text = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
    return text + "".join(f"\n{note}\n" for note in table.notes)


def as_latex(table: Table) -> str:
    r"""Format as a `table` environment, which needs `\usepackage{booktabs}`: the best line is bold, notes are below."""

    def cell(text: str) -> str:
        # a bracket at the start of a line would be taken for the optional argument of \\
        return f"{{{text.translate(_LATEX)}}}" if text.startswith(("[", "*")) else text.translate(_LATEX)

    cells = table.cells.map(cell).rename(columns=cell)
    cells.iloc[table.best] = cells.iloc[table.best].map(lambda text: rf"\textbf{{{text}}}")
    columns = "l" + "r" * (len(cells.columns) - 1)
    latex = cells.to_latex(index=False, escape=False, column_format=columns, caption=table.title.translate(_LATEX))
    notes = "".join(rf"\par\footnotesize {note.translate(_LATEX)}" + "\n" for note in table.notes)
    return (
        str(latex)
        .replace(r"\end{table}", rf"{notes}\end{{table}}")
        .replace(r"\begin{table}", "\\begin{table}\n\\centering")
    )


def as_csv(comparison: Comparison, *, per_class: bool = False) -> str:
    """Format as CSV: one line per run with every axis and score, or one per run and class with its IoU.

    Columns that begin with `row_` have the same value for all seeds of a row.
    """
    runs = comparison.runs
    if per_class:
        prefix = class_prefix(comparison)
        scores = [name for name in runs if str(name).startswith(prefix)]
        long = runs.melt([*ROW, "seed", "folder"], scores, "class", "IoU", ignore_index=False)
        long = long.dropna(subset="IoU").sort_index(kind="stable")
        long["class"] = long["class"].str.removeprefix(prefix)
        lines = long[[*ROW, "seed", "class", "IoU", "folder"]]
    else:
        scores = list(dict.fromkeys([comparison.metric, *comparison.also, *runs.select_dtypes(float)]))
        columns = [*ROW, "seed", "status", "steps", *scores, *comparison.axes, "commit", "folder"]
        lines = runs[columns].merge(row_columns(comparison), on=ROW)
    return str(lines.to_csv(index=False, lineterminator="\n"))


def row_columns(comparison: Comparison) -> pd.DataFrame:
    """Columns of a CSV file that all runs of a row share: `table`, `row`, `row_mean`, ..., and its confounders."""
    rows = comparison.rows
    names = ["mean", "low", "high", "difference", "difference_low", "difference_high"]
    shared = rows[[*ROW, *names]].rename(columns={name: f"row_{name}" for name in names})
    return shared.assign(published_percent=rows["published"], confounders=rows["confounders"].map("; ".join))


def print_tables(comparison: Comparison, console: Console, *, per_class: bool) -> None:
    """Print to a terminal; if it is narrow, print each table alone with fewer columns, so that nothing is cut off."""

    def fits(table: Table) -> bool:
        return console.measure(rich_table(table), options=console.options.update(width=1000)).maximum <= console.width

    each = [comparison.table(name) for name in comparison.tables]
    table = main_table(comparison)
    shown = [table] if fits(table) else [main_table(one, narrow=True) for one in each]
    if per_class:
        table = class_table(comparison)
        shown += [table] if fits(table) else [class_table(one) for one in each]
    for table in shown:
        console.print(rich_table(table), *map(Text, table.notes), sep="\n")


def rich_table(table: Table) -> RichTable:
    """Make a table for the terminal; the best line is bold."""
    drawn = RichTable(title=escape(table.title))
    for name in table.cells:
        # in a narrow terminal other columns may wrap, but nothing is cut off
        drawn.add_column(escape(name), no_wrap=name.startswith(("test/", "val/", "95 %")), overflow="fold")
    for index, line in enumerate(table.cells.to_numpy().tolist()):
        drawn.add_row(*map(escape, line), style="bold" if index in table.best else None)
    return drawn


def _names(comparison: Comparison) -> pd.Series:
    rows = comparison.rows
    return rows["row"] if len(comparison.tables) == 1 else rows["table"] + "/" + rows["row"]


def _notes(comparison: Comparison, rows: pd.DataFrame) -> list[str]:
    """The notes below a table; the rows have the `name` that it shows."""
    notes = []
    drawn = rows[rows["difference_low"].notna()]
    if len(drawn):
        images = " or ".join(str(count) for count in sorted(set(drawn["images"])))
        notes.append(
            f"95 % interval of Δ: two-level bootstrap over the n seeds of both rows and {images} test images, "
            f"{RESAMPLES:,} draws."
        )
        single = drawn.loc[drawn["one_training"], "name"]
        if len(single):
            notes.append(
                f"With one seed on a side ({', '.join(single)}) only images are drawn on that side: the interval "
                "speaks of this one training, not of what another seed would give."
            )
    notes += _best_crf(rows, comparison.metric)
    notes += filter(None, (rank_order(comparison.table(name)) for name in comparison.tables))
    lines = rows.to_dict("records")
    notes += [f"{MARK} {line['name']}: {'; '.join(line['confounders'])}" for line in lines if line["confounders"]]
    notes += [f"{line['name']}: {line['moved_data']}" for line in lines if line["moved_data"]]
    damaged = comparison.damaged
    if damaged:
        notes.append(f"{len(damaged)} damaged run{'s' if len(damaged) > 1 else ''} left out: {'; '.join(damaged)}")
    return notes


def _best_crf(rows: pd.DataFrame, metric: str) -> list[str]:
    """The best number of CRF steps of each trained row that was tested with several."""
    tested = rows[(rows["n"] > 0) & rows["postprocess"].notna()]
    names = [name.partition(" + ") for name in tested["name"]]
    tested = tested.assign(trained=[name[0] for name in names], words=[name[2] for name in names])
    notes, unit = [], unit_of(metric)
    for (trained, *_), group in tested.groupby(["trained", "memory_rows", "tta", "window"], sort=False, dropna=False):
        if len(group) > 1:
            found, tried = group.loc[best(group["mean"], metric)], ", ".join(group["words"])
            notes.append(
                f"Best CRF of {trained}: {found['words']} ({unit.number(found['mean'])}), of {tried}; "
                "chosen on the images that it is scored on, as in the papers."
            )
    return notes
