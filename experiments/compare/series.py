"""Rows sorted into curves: which rows differ in one axis and agree in all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from beyondpixel.experiments.compare.rows import Row
from beyondpixel.experiments.compare.tables import axes_that_differ

# the papers' names of axes
AXIS_NAMES = {"df": "DF", "region_size": "R", "pixel_weight": "λ", "max_steps": "steps", "lr": "learning rate"}


@dataclass(frozen=True)
class Series:
    """One curve: the same in all axes but one.

    Attributes:
        label: the values of the other axes that vary in its panel; empty where none does.
        rows: by their value of the panel's axis.
    """

    label: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Panel:
    """One plot: a metric against one axis.

    Attributes:
        axis: name of the axis, or `row` where no axis has two rows that agree in all others.
        positions: the axis's values to places on the x axis.
        numeric: whether the places are the values themselves.
        series: the curves.
    """

    axis: str
    positions: dict[Any, float]
    numeric: bool
    series: tuple[Series, ...]

    @property
    def name(self) -> str:
        """How papers call the axis."""
        return AXIS_NAMES.get(self.axis, self.axis.replace("_", " "))

    def value_of(self, row: Row) -> Any:
        """The row's value of the axis."""
        return row.name if self.axis == "row" else _plain(row.axes[self.axis])


def panels(rows: Sequence[Row]) -> list[Panel]:
    """One panel for each axis in which at least two rows differ that agree in all others.

    An axis that a row does not have (RMI's DF, for a row with cross entropy) takes no part in the agreement.

    Args:
        rows: of one table, from `collect_rows`; those without a result are left out.
    """
    scored = [row for row in rows if row.mean is not None]
    axes = axes_that_differ(scored)
    found = [panel for axis in axes if (panel := _panel(axis, axes, scored))]
    if not found and scored:
        names = [row.name for row in scored]
        positions = {name: float(index) for index, name in enumerate(names)}
        found = [Panel("row", positions, False, (Series("", tuple(scored)),))]
    return found


def _panel(axis: str, axes: Sequence[str], rows: Sequence[Row]) -> Panel | None:
    having = [row for row in rows if row.axes.get(axis) is not None]
    others = [other for other in axes if other != axis and all(row.axes.get(other) is not None for row in having)]
    others = [other for other in others if len({str(row.axes[other]) for row in having}) > 1]
    curves: dict[tuple[str, ...], list[Row]] = {}
    for row in having:
        curves.setdefault(tuple(str(row.axes[other]) for other in others), []).append(row)
    curves = {key: group for key, group in curves.items() if len({str(row.axes[axis]) for row in group}) > 1}
    if not curves:
        return None
    shown = [row for group in curves.values() for row in group]
    values = list(dict.fromkeys(_plain(row.axes[axis]) for row in shown))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    values.sort(key=None if numeric else str)
    positions = {value: float(value) if numeric else float(index) for index, value in enumerate(values)}
    telling = [index for index in range(len(others)) if len({key[index] for key in curves}) > 1]
    series = [
        Series(
            ", ".join(f"{AXIS_NAMES.get(others[index], others[index])} {key[index]}" for index in telling),
            tuple(sorted(group, key=lambda row: positions[_plain(row.axes[axis])])),
        )
        for key, group in curves.items()
    ]
    return Panel(axis, positions, numeric, tuple(series))


def _plain(value: Any) -> Any:
    """A value that can be a dictionary's key."""
    return value if isinstance(value, str | int | float | bool) else "×".join(map(str, value))
