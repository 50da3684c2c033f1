"""`beyondpixel specs`: which tables and rows there are, how the rows differ, and what is published for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from beyondpixel.experiments.axes import axes_of
from beyondpixel.experiments.specs import RUNS, Spec, SpecError, find_specs, load_spec


def show_specs(places: Sequence[str | Path] = ()) -> None:
    """Print an overview of the tables that come with the package, or the rows of some.

    Args:
        places: tables, rows, files or folders, as for `find_specs`; none for the overview.

    Raises:
        UserError: if a place does not exist, or for all that is wrong with the specs in it.
    """
    console = Console()
    tables = _load(places or [RUNS])
    if not places:
        console.print(_overview(tables))
        console.print("Rows of a table: [bold]beyondpixel specs TABLE[/bold]")
    for name, specs in tables.items() if places else ():
        console.print(f"[bold]{name}[/bold]")
        for label, texts in _said(specs).items():
            console.print(f"  {label + ':':<11}{'; '.join(texts)}", markup=False, highlight=False)
        console.print(_rows(specs))


def header_of(file: Path) -> dict[str, str]:
    """What the comments at a spec's top say: `# Hardware: GPU` is `{"Hardware": "GPU"}`."""
    return dict(re.findall(r"^# (\w+): +(.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE))


def differing_axes(specs: Sequence[Spec]) -> dict[str, list[Any]]:
    """The axes in which rows differ, each with the rows' values; that one does not apply to a row is no difference."""
    axes = [{**axes_of(spec.config), "evaluates": _evaluated(spec)} for spec in specs]
    columns = {axis: [row[axis] for row in axes] for axis in axes[0]}
    return {axis: values for axis, values in columns.items() if len({str(v) for v in values if v is not None}) > 1}


def _evaluated(spec: Spec) -> str:
    if spec.evaluate is None:
        return "itself"
    row = spec.evaluate["run"].removeprefix(f"{spec.table}/")
    return " ".join([row, *(str(value) for key, value in spec.evaluate.items() if key != "run")])


def _load(places: Sequence[str | Path]) -> dict[str, list[Spec]]:
    tables: dict[str, list[Spec]] = {}
    mistakes: list[str] = []
    for place in find_specs(places):
        try:
            spec = load_spec(place)
            tables.setdefault(spec.table, []).append(spec)
        except SpecError as error:
            mistakes += error.mistakes
    if mistakes:
        raise SpecError(mistakes)
    return tables


def _overview(tables: dict[str, list[Spec]]) -> Table:
    """What each table varies and, below it, what it is: a narrow terminal has room for few columns."""
    overview = Table.grid(padding=(0, 2))
    for name, specs in tables.items():
        values = [spec.reference["value"] for spec in specs if "value" in spec.reference]
        facts = [f"{len(specs)} rows", ", ".join(differing_axes(specs))]
        if values:
            facts.append(f"published {' … '.join(f'{end:.2f}' for end in sorted({min(values), max(values)}))}")
        what = header_of(specs[0].file).get("Table", "").removeprefix("none; ")
        what = f"Table {what}" if what[:1].isdigit() else what
        varies = "; ".join(filter(None, facts))
        overview.add_row(Text(name, style="bold"), Text.assemble(varies, "\n", (what, "dim")))
    return overview


def _rows(specs: Sequence[Spec]) -> Table:
    axes = differing_axes(specs)
    table = Table("row", *axes, "published (%)")
    for index, spec in enumerate(specs):
        cells = [_shown(values[index]) for values in axes.values()]
        value = spec.reference.get("value")
        table.add_row(spec.row, *cells, "–" if value is None else f"{value:.2f}")
    return table


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _said(specs: Sequence[Spec]) -> dict[str, list[str]]:
    """What the files say of all their rows, each text once."""
    headers = [header_of(spec.file) for spec in specs]
    place = specs[0].table if specs[0].file.is_relative_to(RUNS) else str(specs[0].file.parent)
    said = {label: [header.get(label, "") for header in headers] for label in ("Paper", "Table", "Hardware")}
    said["Published"] = [spec.reference.get("source", "") for spec in specs]
    said["Launch"] = [f"beyondpixel launch {place}"]
    texts = {label: [text for text in dict.fromkeys(found) if text] for label, found in said.items()}
    return {label: found for label, found in texts.items() if found}
