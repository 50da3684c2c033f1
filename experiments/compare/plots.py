"""A metric against each axis that varies: our mean with its spread over seeds, the papers' numbers beside it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from beyondpixel.experiments.compare.rows import Row
from beyondpixel.experiments.compare.series import Panel, Series, panels
from beyondpixel.experiments.compare.units import unit_of
from beyondpixel.experiments.errors import UserError

# told apart by people of all kinds of colour vision (after Okabe and Ito); visible on white and on dark grey
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#a6761d", "#8a63d2")
PANEL_SIZE = (4.4, 3.3)  # inches
PANELS_ABREAST = 3
# drawn in place of black and turned into the page's own text colour afterwards
INK = "#010203"
FORMATS = (".png", ".pdf", ".svg")


def draw_plots(rows: Sequence[Row], metric: str, *, title: str | None = None) -> Figure:
    """A figure with one panel for each axis that varies among the rows of one table.

    Error bars are ± one standard deviation over seeds. The dashed line is the baseline row. Hollow points on dotted
    lines are the published numbers that the run specs record; theirs, not ours.

    Args:
        rows: of one table, from `collect_rows`.
        metric: the figure compared.
        title: above the panels; the table's name if None.
    """
    found = panels(rows)
    columns = min(PANELS_ABREAST, max(1, len(found)))
    lines = max(1, -(-len(found) // columns))
    figure = Figure(figsize=(columns * PANEL_SIZE[0], lines * PANEL_SIZE[1]), layout="constrained")
    for place, panel in enumerate(found, start=1):
        draw_panel(figure.add_subplot(lines, columns, place), panel, rows, metric)
    figure.suptitle(title if title is not None else rows[0].table)
    return figure


def draw_panel(axes: Axes, panel: Panel, rows: Sequence[Row], metric: str) -> None:
    """Draw one panel.

    Args:
        axes: where to draw.
        panel: from `panels`.
        rows: all rows of the table, for the baseline's line.
        metric: the figure compared.
    """
    unit = unit_of(metric)
    for index, series in enumerate(panel.series):
        color = COLORS[index % len(COLORS)]
        _draw_ours(axes, panel, series, unit.scale, color)
        if metric.endswith("mIoU"):
            _draw_theirs(axes, panel, series, color)
    base = next((row for row in rows if row.is_baseline and row.mean is not None), None)
    if base is not None and base.mean is not None and not any(base in series.rows for series in panel.series):
        axes.axhline(unit.scale * base.mean, color="#808080", linestyle="--", linewidth=1, label=f"{base.name} (ours)")
    axes.set_xlabel(panel.name)
    axes.set_ylabel(f"{metric}{unit.label}")
    if not panel.numeric:
        axes.set_xlim(-0.5, len(panel.positions) - 0.5)
    if not panel.numeric or len(panel.positions) <= 8:
        long = sum(len(str(value)) for value in panel.positions) > 36
        axes.set_xticks(
            list(panel.positions.values()),
            [str(value) for value in panel.positions],
            rotation=30 if long else 0,
            ha="right" if long else "center",
        )
    finish_axes(axes)


def finish_axes(axes: Axes) -> None:
    """The looks that all plots share: light lines for values, no box, a legend."""
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="small", framealpha=0.6)


def save_plot(rows: Sequence[Row], metric: str, file: Path) -> list[Path]:
    """Draw every table's plots into one file.

    Args:
        rows: from `collect_rows`; of several tables, each gets its own file, with the table's name in front.
        metric: the figure compared.
        file: a PNG, PDF or SVG.

    Returns:
        The files, one a table.

    Raises:
        UserError: for another kind of file.
    """
    return save_by_table(rows, file, lambda of_table: draw_plots(of_table, metric), option="--plot")


def save_by_table(
    rows: Sequence[Row], file: Path, draw: Callable[[Sequence[Row]], Figure], *, option: str
) -> list[Path]:
    """Draw the rows of each table into a file of its own.

    Args:
        rows: from `collect_rows`.
        file: a PNG, PDF or SVG; of several tables, each has its name put in front.
        draw: what makes the figure of one table's rows.
        option: of the command line that names the file, for the error.

    Returns:
        The files, one a table.

    Raises:
        UserError: for another kind of file.
    """
    if file.suffix.lower() not in FORMATS:
        raise UserError(f"{option}: expected a file that ends in {', '.join(FORMATS)}, got {file}")
    file.parent.mkdir(parents=True, exist_ok=True)
    tables = list(dict.fromkeys(row.table for row in rows))
    files = [file if len(tables) == 1 else file.with_name(f"{table}_{file.name}") for table in tables]
    for table, its_file in zip(tables, files, strict=True):
        draw([row for row in rows if row.table == table]).savefig(its_file, dpi=160)
    return files


def plots_as_svg(rows: Sequence[Row], metric: str) -> list[str]:
    """The plots of one table, an SVG element a panel, in the text colour of the page around them."""

    def drawing(panel: Panel) -> Callable[[Axes], None]:
        return lambda axes: draw_panel(axes, panel, rows, metric)

    return [as_svg(drawing(panel), f"{rows[0].table}_{panel.axis}") for panel in panels(rows)]


def as_svg(draw: Callable[[Axes], None], name: str) -> str:
    """One plot as an SVG element in the text colour of the page around it.

    Args:
        draw: what draws it.
        name: that no other plot of the page has; the same drawing under the same name is the same text.
    """
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        **dict.fromkeys(inked, INK),
        "svg.fonttype": "none",  # text stays text, in the page's font
        "svg.hashsalt": name,
        "legend.facecolor": "none",
    }
    with rc_context(style):
        figure = Figure(figsize=PANEL_SIZE, layout="constrained")
        draw(figure.add_subplot())
        return _as_element(figure, prefix=re.sub(r"\W", "_", name))


def _as_element(figure: Figure, prefix: str) -> str:
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)  # the page says how large
    # ids of two figures on one page must not meet
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)


def _draw_ours(axes: Axes, panel: Panel, series: Series, scale: float, color: str) -> None:
    places = [panel.positions[panel.value_of(row)] for row in series.rows]
    means = [scale * (row.mean or 0.0) for row in series.rows]
    spreads = [scale * (row.std or 0.0) for row in series.rows]
    joined = panel.numeric and len(set(places)) == len(places)
    axes.errorbar(
        places,
        means,
        yerr=spreads if any(spreads) else None,
        fmt="o-" if joined else "o",
        color=color,
        capsize=3,
        label=f"ours{': ' + series.label if series.label else ''}",
    )


def _draw_theirs(axes: Axes, panel: Panel, series: Series, color: str) -> None:
    known = [row for row in series.rows if row.reference is not None]
    if not known:
        return
    places = [panel.positions[panel.value_of(row)] for row in known]
    axes.plot(
        places,
        [row.reference or 0.0 for row in known],
        marker="s",
        markerfacecolor="none",
        linestyle=":" if panel.numeric and len(set(places)) == len(places) else "none",
        color=color,
        label=f"published{': ' + series.label if series.label else ''}",
    )
