"""Plots of a comparison: a score against each axis that varies, and mIoU near boundaries against the band's width."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from beyondpixel.experiments.axes import EVALUATION_AXES
from beyondpixel.experiments.compare.rows import Comparison
from beyondpixel.experiments.compare.tables import differing_axes
from beyondpixel.experiments.compare.units import unit_of
from beyondpixel.experiments.errors import UserError

# the papers' names of axes
AXIS_NAMES = {"df": "DF", "region_size": "R", "pixel_weight": "λ", "max_steps": "steps", "lr": "learning rate"}
# distinct with any kind of color vision (after Okabe and Ito); visible on white and on dark gray
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#a6761d", "#8a63d2")
PANEL_SIZE = (4.4, 3.4)  # inches
PANELS_PER_LINE = 3
TEXT_COLOR = "#010203"  # placeholder for black, which is replaced by the text color of the page
TRIMAP = "test/trimap_mIoU/"
# width of a legend below a plot, and of the line sample of an entry, in characters
LEGEND_WIDTH, LINE_SAMPLE_WIDTH = 80, 8


Series = dict[str, pd.DataFrame]  # rows by label, the values of the other axes that vary


def panels(comparison: Comparison) -> dict[str, Series]:
    """The series of each axis in which at least two rows differ while all their other axes are equal.

    Axes that a row does not have (RMI's DF, for a row with cross entropy) are not compared. Rows with different
    post-processing are different series. If there is no such axis, the only key is `row`.

    Args:
        comparison: of one table; rows without a result are left out.
    """
    rows = comparison.rows[comparison.rows["n"] > 0].copy()
    rows[[*EVALUATION_AXES]] = rows[[*EVALUATION_AXES]].fillna("none")
    axes = differing_axes(rows, comparison.axes)
    found = {axis: series for axis in axes if (series := _series(axis, axes, rows))}
    return found or ({"row": {"": rows}} if len(rows) else {})


def _series(axis: str, axes: list[str], rows: pd.DataFrame) -> Series:
    """Rows by the values of the other axes that vary, where at least two rows differ in this axis alone."""
    having = rows[rows[axis].notna()]
    others = [other for other in axes if other != axis and having[other].notna().all()]
    # all rows have the same table, so that there is always something to group by
    shown = having[having.groupby(["table", *others], sort=False)[axis].transform("nunique") > 1]
    varying = [other for other in others if shown[other].nunique() > 1]
    groups = shown.groupby(["table", *varying], sort=False)
    return {", ".join(map(_label, varying, values)): group for (_, *values), group in groups}


def _label(axis: str, value: Any) -> str:
    return f"{AXIS_NAMES.get(axis, axis)} {value}"


def draw_panel(axes: Axes, axis: str, series: Series, comparison: Comparison) -> None:
    """Draw one panel: means with 95 % intervals, published numbers hollow and dotted, the baseline as a dashed line.

    Published numbers on another data set have a separate axis on the right.
    """
    unit, rows = unit_of(comparison.metric), pd.concat(series.values())
    elsewhere = rows.loc[rows["published_other"].notna(), "other_data_set"]
    right = _right_axis(axes, f"published, {elsewhere.iloc[0]}{unit.label}") if len(elsewhere) else None
    ticks, numeric = _ticks(rows[axis])
    span = max(ticks.values()) - min(ticks.values())
    for index, (label, group) in enumerate(series.items()):
        # side by side, so that no interval hides another
        shift = 0.02 * span * (index - (len(series) - 1) / 2)
        position = group[axis].map(ticks).astype(float) + shift
        placed = group.assign(position=position).sort_values("position", kind="stable")
        joined = numeric and placed["position"].is_unique
        suffix, (color, _) = f": {label}" if label else "", _style(index)
        _errorbars(axes, placed, unit.scale, fmt="o-" if joined else "o", color=color, label=f"ours{suffix}")
        style = {"color": color, "linestyle": ":" if joined else "none"}
        _draw_published(axes, placed, "published", label=f"published{suffix}", **style)
        if right is not None:
            _draw_published(right, placed, "published_other", label=f"published{suffix} (right)", **style)
    found = comparison.rows
    for _, base in found[found["is_baseline"] & (found["n"] > 0) & ~found["row"].isin(rows["row"])].iterrows():
        label = f"{base['row']} (ours)"
        axes.axhline(unit.scale * base["mean"], color="#808080", linestyle="--", linewidth=1, label=label)
    axes.set_xlabel(AXIS_NAMES.get(axis, axis.replace("_", " ")))
    axes.set_ylabel(f"{comparison.metric}{unit.label}")
    _set_ticks(axes, ticks, numeric=numeric)
    _finish(axes, right)


def _ticks(values: pd.Series) -> tuple[dict[Any, float], bool]:
    """Position of each value on the x axis, and whether the positions are the values themselves."""
    distinct = list(dict.fromkeys(values))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in distinct):
        return {value: float(value) for value in sorted(distinct)}, True
    return {value: float(index) for index, value in enumerate(distinct)}, False


def _draw_published(axes: Axes, rows: pd.DataFrame, column: str, **style: Any) -> None:
    known = rows[rows[column].notna()]
    if len(known):
        axes.plot(known["position"], known[column], marker="s", markerfacecolor="none", **style)


def _set_ticks(axes: Axes, ticks: dict[Any, float], *, numeric: bool) -> None:
    if not numeric:
        axes.set_xlim(-0.5, len(ticks) - 0.5)
    elif len(ticks) > 8:
        return  # matplotlib's own
    labels = [str(value) for value in ticks]
    slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(list(ticks.values()), labels, **(slanted if sum(map(len, labels)) > 36 else {}))


def draw_plots(comparison: Comparison) -> Figure:
    """Draw all panels of one table."""
    found = panels(comparison)
    columns = min(PANELS_PER_LINE, max(1, len(found)))
    lines = max(1, -(-len(found) // columns))
    figure = Figure(figsize=(columns * PANEL_SIZE[0], lines * PANEL_SIZE[1]), layout="constrained")
    for number, (axis, series) in enumerate(found.items(), start=1):
        draw_panel(figure.add_subplot(lines, columns, number), axis, series, comparison)
    intervals = comparison.rows["low"].notna().any()
    bars = "95 % intervals over seeds and test images" if intervals else "± standard deviation over seeds"
    figure.suptitle(f"{comparison.tables[0]} (bars: {bars})", fontsize="medium")
    return figure


def trimap_widths(runs: pd.DataFrame) -> list[int]:
    """The widths, in pixels, at which at least one of the runs was tested."""
    scores = [column for column in runs if str(column).startswith(TRIMAP) and runs[column].notna().any()]
    return sorted(int(score.removeprefix(TRIMAP)) for score in scores)


def draw_trimap(axes: Axes, comparison: Comparison) -> None:
    """Draw mIoU within bands around the boundaries against their width: mean over seeds ± one standard deviation."""
    widths = trimap_widths(comparison.runs)
    statistics = [comparison.statistics(f"{TRIMAP}{width}") for width in widths]
    means, stds = (100 * np.stack([one[name] for one in statistics], axis=1) for name in ("mean", "std"))
    tested = [row for row in range(len(means)) if not np.isnan(means[row]).all()]
    for index, row in enumerate(tested):
        known = ~np.isnan(means[row])
        spread = None if np.isnan(stds[row]).all() else np.nan_to_num(stds[row][known])
        color, line = _style(index)
        style: dict[str, Any] = {"color": color, "linestyle": line, "marker": "o", "markersize": 4, "capsize": 3}
        axes.errorbar(np.array(widths)[known], means[row][known], spread, label=comparison.rows["row"][row], **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.set_xlabel("pixels on either side of the true boundary")
    axes.set_ylabel("test mIoU within (%)")
    _finish(axes)


def save_plots(comparison: Comparison, file: Path) -> list[Path]:
    """Plot the metric against each axis that varies, in one file per table; return the files."""
    return _save(comparison, comparison.tables, file, draw_plots)


def save_trimap(comparison: Comparison, file: Path) -> list[Path]:
    """Plot mIoU near boundaries, in one file per table with boundary metrics; return the files."""
    tables = [name for name in comparison.tables if trimap_widths(comparison.table(name).runs)]
    if not tables:
        raise UserError(f"--trimap: no run has a {TRIMAP}<width>: expected runs tested with boundary metrics")

    def draw(of_table: Comparison) -> Figure:
        figure = Figure(figsize=(6.0, 4.2), layout="constrained")
        draw_trimap(figure.add_subplot(), of_table)
        figure.suptitle(f"{of_table.tables[0]} (bars: ± standard deviation over seeds)", fontsize="medium")
        return figure

    return _save(comparison, tables, file, draw)


def as_svg(draw: Callable[[Axes], None], name: str) -> str:
    """Draw a plot as an SVG element in the text color of the surrounding page; `name` must be unique on the page."""
    color_keys = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    # keep text as text, in the page's font
    style: dict[Any, Any] = {**dict.fromkeys(color_keys, TEXT_COLOR), "svg.fonttype": "none", "svg.hashsalt": name}
    text = io.StringIO()
    with rc_context(style):
        figure = Figure(figsize=PANEL_SIZE, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(text, format="svg", transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(TEXT_COLOR, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)  # the page sets the size
    prefix = re.sub(r"\W", "_", name)  # ids must be unique on the page
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)


def _save(
    comparison: Comparison, tables: Sequence[str], file: Path, draw: Callable[[Comparison], Figure]
) -> list[Path]:
    """Draw each table into a separate file; several files are prefixed with the names of their tables."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files = [file if len(tables) == 1 else file.with_name(f"{table}_{file.name}") for table in tables]
    for table, table_file in zip(tables, files, strict=True):
        draw(comparison.table(table)).savefig(table_file, dpi=160)
    return files


def _errorbars(axes: Axes, rows: pd.DataFrame, scale: float, **style: Any) -> None:
    """Draw means with their intervals, or ± one standard deviation over seeds if there are none."""
    spread = rows["std"].fillna(0.0)
    below = (rows["mean"] - rows["low"]).fillna(spread).clip(lower=0)
    above = (rows["high"] - rows["mean"]).fillna(spread).clip(lower=0)
    bars = scale * np.stack([below, above])
    axes.errorbar(rows["position"], scale * rows["mean"], yerr=bars if bars.any() else None, capsize=3, **style)


def _right_axis(axes: Axes, label: str) -> Axes:
    right = axes.twinx()
    right.set_ylabel(label)
    right.spines["top"].set_visible(False)
    return right


def _style(index: int) -> tuple[str, str]:
    """Color and line style of a series."""
    return COLORS[index % len(COLORS)], ("-", "--", ":")[index // len(COLORS) % 3]


def _finish(axes: Axes, right: Axes | None = None) -> None:
    """Add grid and legend, which is below the plot if it is long, or if a right axis has points that it could hide."""
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [handle for one in (axes, right) if one is not None for handle in one.get_legend_handles_labels()[0]]
    below: dict[str, Any] = {}
    if right is not None or len(handles) > 6:
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(3, LEGEND_WIDTH // (longest + LINE_SAMPLE_WIDTH)))
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncol": columns}
    axes.legend(handles=handles, fontsize="small", framealpha=0.0, **below)
