"""`beyondpixel compare`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from beyondpixel.experiments.compare.classes import class_cells, class_csv
from beyondpixel.experiments.compare.latex import as_latex
from beyondpixel.experiments.compare.rows import Row, collect_rows
from beyondpixel.experiments.compare.tables import as_csv, as_markdown, as_terminal, main_cells, rich_table
from beyondpixel.experiments.errors import UserError

Format = Literal["table", "md", "csv", "latex"]
WIDTH_IN_A_FILE = 200


def compare(
    folders: Sequence[str | Path],
    *,
    metric: str = "test/mIoU",
    also: Sequence[str] = (),
    baseline: str | None = None,
    format: Format = "table",
    per_class: bool = False,
    strict: bool = False,
    output: Path | None = None,
    picture: Path | None = None,
    plot: Path | None = None,
    trimap: Path | None = None,
    html: Path | None = None,
    wandb_workspace: str | None = None,
) -> list[Row]:
    """Print or write a comparison of all runs below some folders, and draw one if asked.

    Args:
        folders: where the run folders are.
        metric: the figure to compare.
        also: further figures, a column each.
        baseline: the row that differences refer to; None takes the CE row.
        format: `table` for the terminal, `md` for Markdown, `latex` for a paper, `csv` with one line a run.
        per_class: also give the IoU of each class; with `csv`, give it instead, since a file has one header.
        strict: refuse to compare rows that differ from the baseline in anything but their axes.
        output: a file to write instead of the terminal.
        picture: a PNG to draw: the baseline row beside the best other row on test images.
        plot: a file to plot into (PNG, PDF or SVG): the metric against each axis that varies.
        trimap: a file to plot mIoU near boundaries into, against the width of the band.
        html: a page to write: tables, plots and pictures in one file.
        wandb_workspace: `ENTITY/PROJECT` to save a W&B workspace in.

    Returns:
        The rows compared.

    Raises:
        UserError: for folders, rows or figures that are not there, and with `strict` for unlike rows.
    """
    rows = collect_rows(folders, metric=metric, baseline=baseline, further=also)
    if strict:
        refuse_unlike(rows)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(as_text(rows, metric, format, per_class=per_class), encoding="utf-8")
        print(f"Table written to {output}")
    elif format == "table":
        _print(Console(), rows, metric, per_class=per_class)
    else:
        print(as_text(rows, metric, format, per_class=per_class), end="")
    if picture is not None:
        from beyondpixel.experiments.compare.qualitative import draw_rows

        draw_rows(rows, metric, picture)
        print(f"Picture saved as {picture}")
    if plot is not None:
        from beyondpixel.experiments.compare.plots import save_plot

        for file in save_plot(rows, metric, plot):
            print(f"Plot saved as {file}")
    if trimap is not None:
        from beyondpixel.experiments.compare.trimap import save_trimap

        for file in save_trimap(rows, trimap):
            print(f"Trimap plot saved as {file}")
    if html is not None:
        from beyondpixel.experiments.compare.report import write_report

        write_report(rows, metric, html)
        print(f"Report written to {html} ({html.stat().st_size / 2**20:.1f} MB)")
    if wandb_workspace is not None:
        from beyondpixel.experiments.compare.workspace import save_workspace

        print(f"W&B workspace saved: {save_workspace(rows, metric, wandb_workspace)}")
    return rows


def refuse_unlike(rows: Sequence[Row]) -> None:
    """Raise an error if a row differs from its baseline in anything but its axes.

    Raises:
        UserError: naming every such row and what it differs in.
    """
    unlike = [f"{row.table}/{row.name}: {'; '.join(row.remarks)}" for row in rows if row.remarks]
    if unlike:
        raise UserError(
            "--strict: these rows differ from the baseline in more than their axes:\n  "
            + "\n  ".join(unlike)
            + "\nlaunch them again with one clean commit and one set of versions, or leave --strict out"
        )


def as_text(rows: Sequence[Row], metric: str, format: Format, *, per_class: bool = False) -> str:
    """The comparison as a file holds it.

    Args:
        rows: from `collect_rows`.
        metric: the figure compared.
        format: as for `compare`.
        per_class: whether the IoU of each class is asked for.
    """
    if format == "csv":
        return class_csv(rows, metric) if per_class else as_csv(rows, metric)
    if format == "table":
        console = Console(file=io.StringIO(), width=WIDTH_IN_A_FILE, record=True)
        _print(console, rows, metric, per_class=per_class)
        return console.export_text()
    write = as_markdown if format == "md" else as_latex
    tables = [main_cells(rows, metric), *([class_cells(rows, metric)] if per_class else [])]
    return "\n".join(write(cells) for cells in tables)


def _print(console: Console, rows: Sequence[Row], metric: str, *, per_class: bool) -> None:
    console.print(as_terminal(rows, metric, console))
    if per_class:
        console.print(rich_table(class_cells(rows, metric)))
