"""Rows as the product of axes, written in one file.

    row: "{pooling}_df{df}"
    grid:
      pooling: {model.loss.pooling: {avg: avg, int: interp}}
      df: {model.loss.downsampling_factor: [2, 4]}

makes the rows `avg_df2`, `avg_df4`, `int_df2` and `int_df4`. An axis has a name, the config key that it changes, and
its values: a list, or a mapping from the label in the row's name to the value. The key `model`, `data` or `trainer`
alone changes several keys together, and the key `base` adds a fragment or a list of fragments.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

LONGEST_NAME = 200
KEY = re.compile(r"base|(data|model|trainer)(\..*)?")
Changes = list[tuple[str, Any]]  # `base` or a dotted config key, with its value


def expand_grid(grid: Any, template: Any) -> dict[str, Changes]:
    """Expand a grid into its rows by name, each with its changes; the last axis varies fastest.

    Args:
        grid: axes, each `{key: values}`.
        template: a format string of the rows' names, with a field for each axis.

    Raises:
        ValueError: one line per error, for an axis without values or with an unknown key, and for row names that are
            not unique or cannot name a folder.

    Example:
        >>> expand_grid({"df": {"model.loss.downsampling_factor": [2, 4]}}, "df{df}")
        {'df2': [('model.loss.downsampling_factor', 2)], 'df4': [('model.loss.downsampling_factor', 4)]}
    """
    errors = [*_axis_errors(grid), *_template_errors(grid, template)]
    if errors:
        raise ValueError("\n".join(errors))
    rows: dict[str, Changes] = {}
    for point in itertools.product(*(list(_labeled(axis, change)) for axis, change in grid.items())):
        name = str(template).format(**{axis: label for axis, _, label, _ in point})
        if not re.fullmatch(r"(?!\.+$)[\w.-]+", name) or len(name.encode()) > LONGEST_NAME:
            errors.append(
                f"row: expected letters, digits, and . _ -, {LONGEST_NAME} bytes at most, since it names a folder, "
                f"got {name[:LONGEST_NAME]!r}"
            )
        if name in rows:
            axes = " and ".join("{" + axis + "}" for axis in grid)
            errors.append(f"row: {template!r} names two rows {name}; it needs {axes}")
        rows[name] = [(key, value) for _, key, _, value in point]
    if errors:
        raise ValueError("\n".join(dict.fromkeys(errors)))
    return rows


def _labeled(axis: str, change: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """Axis, key, label and value of each point of an axis."""
    ((key, values),) = change.items()
    pairs = values.items() if isinstance(values, Mapping) else ((_label(value), value) for value in values)
    return ((axis, key, str(label), value) for label, value in pairs)


def _axis_errors(grid: Any) -> Iterator[str]:
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(f"grid: expected axes, each {{key: values}}, got {grid!r}")
    for axis, change in grid.items():
        error = _axis_error(change)
        if not isinstance(axis, str) or not axis.isidentifier():
            yield f"grid.{axis}: expected a name of letters, digits and _, so that row can contain {{name}}"
        elif error:
            yield f"grid.{axis}: {error}"


def _axis_error(change: Any) -> str | None:
    if not isinstance(change, Mapping) or len(change) != 1:
        return f"expected one {{key: values}}, got {change!r}"
    ((key, values),) = change.items()
    if not KEY.fullmatch(str(key)):
        return f"unknown key {key}; expected base, or one that starts with data, model or trainer"
    if not isinstance(values, list | Mapping) or not values:
        return f"expected a list of values or {{label: value}}, got {values!r}"
    if key == "base" and not all(map(_is_fragments, values.values() if isinstance(values, Mapping) else values)):
        return f"expected names of fragments, each value one or a list of them, got {values!r}"
    if isinstance(values, list) and any(isinstance(value, list | Mapping) for value in values):
        return "a list or a mapping as a value needs a name for the row: write {label: value}"
    return None


def _is_fragments(value: Any) -> bool:
    return all(isinstance(name, str) for name in (value if isinstance(value, list) else [value]))


def _template_errors(grid: Mapping[Any, Any], template: Any) -> Iterator[str]:
    axes = list(map(str, grid))
    example = "_".join(f"{axis}{{{axis}}}" for axis in axes)
    if not isinstance(template, str):
        yield f"row: a grid needs a name for its rows, such as {example!r}, got {template!r}"
        return
    # a field of str.format with more than a name, such as a width, could request a terabyte of spaces
    rest = re.sub("|".join(re.escape(f"{{{axis}}}") for axis in axes), "", template)
    if "{" in rest or "}" in rest:
        yield f"row: {template!r} is not understood; the axes are {', '.join(axes)}, so it could be {example!r}"


def _label(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
