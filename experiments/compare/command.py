"""`beyondpixel compare`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from beyondpixel.experiments.compare.rows import Row, collect_rows
from beyondpixel.experiments.compare.tables import as_csv, as_markdown, as_terminal

Format = Literal["table", "md", "csv"]
WIDTH_IN_A_FILE = 160


def compare(
    folders: Sequence[str | Path],
    *,
    metric: str = "test/mIoU",
    baseline: str | None = None,
    format: Format = "table",
    output: Path | None = None,
    picture: Path | None = None,
) -> list[Row]:
    """Print or write a comparison of all runs below some folders, and draw one if asked.

    Args:
        folders: where the run folders are.
        metric: the figure to compare.
        baseline: the row that differences refer to; None takes the CE row.
        format: `table` for the terminal, `md` for Markdown, `csv` with one line a run.
        output: a file to write instead of the terminal.
        picture: a PNG to draw: the baseline row beside the best other row on test images.

    Returns:
        The rows compared.
    """
    rows = collect_rows(folders, metric=metric, baseline=baseline)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(_as_text(rows, metric, format))
        print(f"Table written to {output}")
    elif format == "table":
        console = Console()
        console.print(as_terminal(rows, metric, console))
    else:
        print(_as_text(rows, metric, format), end="")
    if picture is not None:
        from beyondpixel.experiments.compare.qualitative import draw_rows

        draw_rows(rows, metric, picture)
        print(f"Picture saved as {picture}")
    return rows


def _as_text(rows: Sequence[Row], metric: str, format: Format) -> str:
    if format == "md":
        return as_markdown(rows, metric)
    if format == "csv":
        return as_csv(rows, metric)
    console = Console(file=io.StringIO(), width=WIDTH_IN_A_FILE, record=True)
    console.print(as_terminal(rows, metric, console))
    return console.export_text()
