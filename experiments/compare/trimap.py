"""mIoU near boundaries against the width of the band: the trimap curve, one a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from beyondpixel.experiments.compare.plots import COLORS, finish_axes, save_by_table
from beyondpixel.experiments.compare.rows import Row
from beyondpixel.experiments.errors import UserError

FAMILY = "test/trimap_mIoU/"
FIGURE_SIZE = (6.0, 4.2)  # inches


def widths_of(rows: Sequence[Row]) -> list[int]:
    """The widths, in pixels, at which at least one of the rows was tested."""
    figures = {figure for row in rows for run in row.runs for figure in run.summary}
    return sorted(int(figure.removeprefix(FAMILY)) for figure in figures if figure.startswith(FAMILY))


def draw_trimap(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the curves of the rows of one table: the mean over seeds, ± one standard deviation.

    Args:
        axes: where to draw.
        rows: from `collect_rows`; those that were not tested in this way are left out.
    """
    widths = widths_of(rows)
    for index, row in enumerate(row for row in rows if widths_of([row])):
        points = [(width, row.mean_of(f"{FAMILY}{width}"), row.std_of(f"{FAMILY}{width}")) for width in widths]
        known = [(width, 100 * mean, 100 * (std or 0.0)) for width, mean, std in points if mean is not None]
        places, means, spreads = zip(*known, strict=True)
        axes.errorbar(
            places,
            means,
            yerr=spreads if any(spreads) else None,
            fmt="o-" if index < len(COLORS) else "s--",
            color=COLORS[index % len(COLORS)],
            capsize=3,
            label=row.name,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.set_xlabel("pixels on either side of the true boundary")
    axes.set_ylabel("test mIoU within (%)")
    finish_axes(axes)


def save_trimap(rows: Sequence[Row], file: Path) -> list[Path]:
    """Draw every table's curves into one file.

    Args:
        rows: from `collect_rows`; of several tables, each gets its own file, with the table's name in front.
        file: a PNG, PDF or SVG.

    Returns:
        The files, one a table that was tested in this way.

    Raises:
        UserError: for another kind of file, and if none of the runs was tested near boundaries.
    """
    tested = [row for row in rows if widths_of([row])]
    if not tested:
        raise UserError(
            f"--trimap: no run has a {FAMILY}<width>: expected runs that were tested with structure scores "
            "(--model.boundary_metrics [test], the default)"
        )

    def draw(of_table: Sequence[Row]) -> Figure:
        figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
        draw_trimap(figure.add_subplot(), of_table)
        figure.suptitle(of_table[0].table)
        return figure

    return save_by_table(tested, file, draw, option="--trimap")
