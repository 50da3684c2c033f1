"""Rows that are a product of axes, written as one file.

    row: "{pooling}_df{df}"
    grid:
      pooling: {model.loss.pooling: {avg: avg, int: interp}}
      df: {model.loss.downsampling_factor: [2, 4]}

gives the rows `avg_df2`, `avg_df4`, `int_df2` and `int_df4`. An axis has a name, the config key that it changes, and
its values: a list, or a mapping from what stands in the row's name to the value. The key `model`, `data` or `trainer`
alone changes several keys together, and the key `base` adds a fragment, or a list of them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from beyondpixel.experiments.layers import Layer, keys_of
from beyondpixel.experiments.spec_files import SpecError, SpecFile

PARTS = ("base", "data", "model", "trainer")


@dataclass(frozen=True)
class GridRow:
    """One point of the product.

    Attributes:
        name: the row's.
        base: names of fragments that the axes add, each with its place.
        layers: what the axes change.
    """

    name: str
    base: tuple[tuple[str, str], ...]
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class _Value:
    axis: str
    key: str
    label: str
    value: Any
    place: str


def grid_rows(source: SpecFile) -> list[GridRow]:
    """The rows of a file with a `grid`, the last axis varying fastest.

    Raises:
        SpecError: with file and line, for an axis without values or with an unknown key, and for row names that are
            not different or no file names.
    """
    grid, template = source.content["grid"], source.content.get("row")
    mistakes = [*_mistakes(source, grid), *_template_mistakes(source, grid, template)]
    if mistakes:
        raise SpecError(mistakes)
    rows: dict[str, GridRow] = {}
    for point in itertools.product(*(list(_values(source, axis, change)) for axis, change in grid.items())):
        name = str(template).format(**{value.axis: value.label for value in point})
        if not re.fullmatch(r"[\w.-]+", name):
            what = "letters, digits, and . _ -, since it names a folder"
            mistakes.append(f"{source.place_of('row')}: row: expected {what}, got {name!r}")
        if name in rows:
            mistakes.append(
                f"{source.place_of('row')}: row: {template!r} names two rows {name}; it needs "
                + " and ".join("{" + axis + "}" for axis in grid)
            )
        base = [(fragment, value.place) for value in point if value.key == "base" for fragment in _names(value.value)]
        layers = [Layer.at(v.place, keys_of(v.key), v.value) for v in point if v.key != "base"]
        rows[name] = GridRow(name, tuple(base), tuple(layers))
    if mistakes:
        raise SpecError(mistakes)
    return list(rows.values())


def _values(source: SpecFile, axis: str, change: Mapping[str, Any]) -> Iterator[_Value]:
    ((key, values),) = change.items()
    labelled = values.items() if isinstance(values, Mapping) else ((_label(v), v) for v in values)
    for index, (label, value) in enumerate(labelled):
        at = str(label) if isinstance(values, Mapping) else str(index)
        yield _Value(axis, key, str(label), value, source.place_of("grid", axis, key, at))


def _mistakes(source: SpecFile, grid: Any) -> Iterator[str]:
    if not isinstance(grid, Mapping) or not grid:
        yield f"{source.place_of('grid')}: grid: expected axes, each {{key: values}}, got {grid!r}"
        return
    for axis, change in grid.items():
        where = f"{source.place_of('grid', str(axis))}: grid.{axis}: "
        if not isinstance(axis, str) or not axis.isidentifier():
            yield f"{where}an axis's name is a word of letters, digits and _, so that row can hold {{name}}"
        elif not isinstance(change, Mapping) or len(change) != 1:
            yield f"{where}expected one {{key: values}}, got {change!r}"
        else:
            ((key, values),) = change.items()
            if str(key).split(".", maxsplit=1)[0] not in PARTS or (str(key).startswith("base") and key != "base"):
                yield f"{where}unknown key {key}; expected base, or one that starts with data, model or trainer"
            elif not isinstance(values, list | Mapping) or not values:
                yield f"{where}expected a list of values or {{label: value}}, got {values!r}"
            elif isinstance(values, list) and any(isinstance(value, list | Mapping) for value in values):
                yield f"{where}a list or a mapping as a value needs a name for the row: write {{label: value}}"


def _template_mistakes(source: SpecFile, grid: Any, template: Any) -> Iterator[str]:
    axes = [str(axis) for axis in grid] if isinstance(grid, Mapping) else []
    example = "_".join(f"{axis}{{{axis}}}" for axis in axes)
    if not isinstance(template, str):
        yield f"{source.place_of('row')}: row: a grid needs its rows' name, such as {example!r}, got {template!r}"
        return
    try:
        template.format(**dict.fromkeys(axes, ""))
    except (KeyError, IndexError, ValueError) as error:
        yield (
            f"{source.place_of('row')}: row: {template!r} is not understood ({error!r}); "
            f"the axes are {', '.join(axes)}, so it could be {example!r}"
        )


def _label(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _names(value: Any) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]
