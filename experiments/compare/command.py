"""The command `beyondpixel compare`."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.image_files import check_extension

if TYPE_CHECKING:
    from rich.console import Console

    from beyondpixel.experiments.compare.rows import Comparison

Format = Literal["table", "md", "csv", "latex"]


def compare(
    folders: list[Path],
    *,
    metric: str = "test/mIoU",
    also: Sequence[str] = (),
    baseline: str | None = None,
    format: Format = "table",
    per_class: bool = False,
    strict: bool = False,
    output: Path | None = None,
    plot: Path | None = None,
    trimap: Path | None = None,
    grid: Path | None = None,
    html: Path | None = None,
    wandb_workspace: str | None = None,
) -> None:
    """Compare finished runs: mean and spread over seeds, difference to the baseline, plots, images, an HTML report.

    Intervals are two-level bootstrap intervals over seeds and test images. Rows marked † differ from the baseline in
    more than their axes. Damaged runs are reported and skipped. Only the run folders are needed.

    Args:
        folders: Folders with runs, e.g. outputs/demo.
        metric: The score to compare.
        also: Additional scores, one column each, e.g. test/boundary_F.
        baseline: The row, or TABLE/ROW, that differences refer to; by default the CE row.
        format: "table" for the terminal, "md" for Markdown, "latex" for a paper, "csv" with one line per run.
        per_class: Add the IoU of each class; CSV has one line per run and class instead.
        strict: Fail if a row differs from the baseline in more than its axes.
        output: Write the table to this file instead of the terminal.
        plot: Plot the score against each axis that varies into this PNG, PDF or SVG file.
        trimap: Plot mIoU near boundaries against the width of the band into this PNG, PDF or SVG file.
        grid: Draw baseline and best other row on the test images where they differ most into this PNG, PDF or SVG file.
        html: Write one HTML page with tables, plots and a slider between predictions to this file.
        wandb_workspace: Save a W&B workspace and a W&B Report in ENTITY/PROJECT; offline they become a JSON file.

    Raises:
        UserError: if a folder, row or score does not exist, and with `strict` if rows are confounded.
    """
    for option, file in (("--plot", plot), ("--trimap", trimap), ("--grid", grid)):
        check_extension(option, file)

    from beyondpixel.experiments.compare.frame import read_runs
    from beyondpixel.experiments.compare.rows import compare_runs
    from beyondpixel.experiments.console import make_console

    comparison = compare_runs(read_runs(folders), metric, baseline=baseline, also=also)
    if strict:
        refuse_confounded(comparison)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(as_text(comparison, format, per_class=per_class), encoding="utf-8")
        print(f"Table written to {output}")
    else:
        sys.stdout.write(as_text(comparison, format, per_class=per_class, console=make_console()))
    for file in _save_plots(comparison, plot, trimap):
        print(f"Plot saved as {file}")
    if grid is not None:
        from beyondpixel.experiments.compare.qualitative import draw_rows

        draw_rows(comparison, grid)
        print(f"Grid saved as {grid}")
    if html is not None:
        from beyondpixel.experiments.compare.report import write_report

        write_report(comparison, html)
        print(f"Report written to {html} ({html.stat().st_size / 2**20:.1f} MB)")
    if wandb_workspace is not None:
        from beyondpixel.experiments.compare.workspace import save_workspace

        for location in save_workspace(comparison, wandb_workspace, folders[0]):
            print(f"W&B workspace saved: {location}")


def _save_plots(comparison: Comparison, plot: Path | None, trimap: Path | None) -> list[Path]:
    if plot is None and trimap is None:
        return []
    from beyondpixel.experiments.compare.plots import save_plots, save_trimap  # matplotlib takes a second

    files = [] if plot is None else save_plots(comparison, plot)
    return files if trimap is None else [*files, *save_trimap(comparison, trimap)]


def refuse_confounded(comparison: Comparison) -> None:
    """Raise a UserError that names every row which differs from its baseline in anything but its axes."""
    rows = comparison.rows.to_dict("records")
    found = [f"{row['table']}/{row['row']}: {'; '.join(row['confounders'])}" for row in rows if row["confounders"]]
    if found:
        raise UserError(
            "--strict: these rows differ from the baseline in more than their axes:\n  "
            + "\n  ".join(found)
            + "\nlaunch them again with one clean commit and one set of versions, or leave --strict out"
        )


def as_text(
    comparison: Comparison, format: Format = "table", *, per_class: bool = False, console: Console | None = None
) -> str:
    """Format the comparison as text; a table has the width and colors of the console, or `FILE_WIDTH` without one."""
    from rich.console import Console

    from beyondpixel.experiments.compare import tables
    from beyondpixel.experiments.console import FILE_WIDTH

    if format == "csv":
        return tables.as_csv(comparison, per_class=per_class)
    if format == "table":
        console = console or Console(file=io.StringIO(), width=FILE_WIDTH)
        with console.capture() as capture:
            tables.print_tables(comparison, console, per_class=per_class)
        return capture.get()
    write = tables.as_markdown if format == "md" else tables.as_latex
    shown = [tables.main_table(comparison), *([tables.class_table(comparison)] if per_class else [])]
    return "\n".join(map(write, shown))
