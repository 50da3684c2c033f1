"""`beyondpixel specs`: the tables and rows that can be launched, their differences and published scores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from beyondpixel.experiments.axes import loss_label
from beyondpixel.experiments.console import make_console
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.merge import Keys, leaves
from beyondpixel.experiments.spec import RUNS, RunSpec, load_specs
from beyondpixel.experiments.yaml_files import in_one_line


def specs(tables: list[str] = [], *, resolved: bool = False, overrides: Mapping[str, Any] | None = None) -> None:  # noqa: B006
    """List the tables that come with the package, the rows of some tables, or the resolved config of a row.

    Args:
        tables: tables, rows, YAML files or folders of them; none for an overview.
        resolved: print the full config of one row as YAML, each value with its source.
        overrides: dotted config keys that override those of the specs, as for `launch`.

    Raises:
        UserError: if a location does not exist, or naming every error of the specs in it.
    """
    found = load_specs(tables or [RUNS], overrides)
    if resolved:
        if len(found) != 1:
            raise UserError(f"--resolved: expected one row, such as {found[0].name}, got {len(found)} rows")
        print(resolved_text(found[0]), end="")
        return
    console = make_console()
    by_table: dict[str, list[RunSpec]] = {}
    for spec in found:
        by_table.setdefault(spec.table, []).append(spec)
    if not tables:
        console.print(_overview(by_table))
        console.print("Rows of a table: [bold]beyondpixel specs TABLE[/bold]")
        return
    for name, rows in by_table.items():
        console.print(f"[bold]{name}[/bold]")
        for label, texts in _facts(rows).items():
            console.print(f"  {label + ':':<11}{'; '.join(texts)}", markup=False, highlight=False)
        console.print(_row_table(rows))


def resolved_text(spec: RunSpec) -> str:
    """The resolved config of a row as YAML; a comment after each value names its source.

    Sources are `base/<fragment>`, `row`, `command line`, and `default` for those of the class's signature.
    """
    from beyondpixel.experiments.resolve import resolve

    lines: dict[Keys, str] = {}  # of values, and of the mappings around them
    for keys, value in leaves(resolve(spec)):
        for depth, key in enumerate(keys):
            lines.setdefault(keys[: depth + 1], f"{'  ' * depth}{key}:")
        text = in_one_line(value)
        lines[keys] += f" {text}  # {spec.merged.source_of(keys, default='default')}"
    return "\n".join(lines.values()) + "\n"


def header_of(file: Path) -> dict[str, str]:
    """The labeled comments at the top of a spec: `# Hardware: GPU` is `{"Hardware": "GPU"}`."""
    return dict(re.findall(r"^# (\w+): +(.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE))


def differing_keys(rows: Sequence[RunSpec]) -> dict[str, list[Any]]:
    """The config keys in which rows differ, by their last part, each with the rows' values; None where not given."""
    given = [_given_keys(spec) for spec in rows]
    columns = {key: [keys.get(key) for keys in given] for key in dict.fromkeys(chain(*given))}
    # a key that a row lacks is no difference, unless nothing else distinguishes the row from another
    differing = [values for values in columns.values() if len({str(value) for value in values} - {"None"}) > 1]
    known = [str(others) for others in zip(*differing, strict=True)] or [""] * len(rows)
    return {
        name: values
        for (_, name), values in columns.items()
        if values in differing or len({*zip(known, map(str, values), strict=True)}) > len({*known})
    }


def _given_keys(spec: RunSpec) -> dict[tuple[str, str], Any]:
    """Values of a row by the first and last part of their keys: data and model both have a `variant`."""
    given: dict[tuple[str, str], Any] = {}
    for keys, value in leaves(spec.config):
        column = keys[0], "loss" if keys[-2:] == ("loss", "name") else keys[-1]
        if keys[-1] != "class_path":
            given[column] = given.get(column) if value is None else value
    return given


def _overview(tables: Mapping[str, Sequence[RunSpec]]) -> Table:
    """List each table with its varied keys and, below them, its title: a narrow terminal has space for few columns."""
    overview = Table.grid(padding=(0, 2))
    for name, rows in tables.items():
        values = [spec.reference["value"] for spec in rows if "value" in spec.reference]
        facts = [f"{len(rows)} row{'s' * (len(rows) != 1)}", ", ".join(differing_keys(rows))]
        if values:
            facts.append(f"published {' … '.join(f'{end:.2f}' for end in sorted({min(values), max(values)}))}")
        what = header_of(rows[0].file).get("Table", "").removeprefix("none; ")
        what = f"Table {what}" if what[:1].isdigit() else what
        overview.add_row(Text(name, style="bold"), Text.assemble("; ".join(filter(None, facts)), "\n", (what, "dim")))
    return overview


def _row_table(rows: Sequence[RunSpec]) -> Table:
    """Table with each row's values in one cell that wraps: few terminals have space for one column per key."""
    differing = differing_keys(rows)
    table = Table(Column("row", no_wrap=True), "differs in", "also tested with", "published (%)")
    for index, spec in enumerate(rows):
        values = {name: values[index] for name, values in differing.items() if values[index] is not None}
        texts = "; ".join(f"{name} {_format_value(value)}" for name, value in values.items())
        table.add_row(spec.row, texts or "–", "\n".join(spec.evaluations) or "–", _published(spec.reference) or "–")
    table.columns = [column for column in table.columns if any(cell != "–" for cell in column.cells)]
    return table


def _published(reference: Mapping[str, Any]) -> str:
    values = [one.get("value") for one in (reference, *reference.get("evaluations", {}).values())]
    where = f" ({reference['data_set']})" if "data_set" in reference else ""
    return ", ".join(f"{value:.2f}" for value in values if value is not None) + where


def _format_value(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return loss_label(value) or "–"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _facts(rows: Sequence[RunSpec]) -> dict[str, list[str]]:
    """The labeled comments of all rows, each text once."""
    headers = [header_of(spec.file) for spec in rows]
    location = rows[0].table if rows[0].file.is_relative_to(RUNS) else str(rows[0].file.parent)
    facts = {label: [header.get(label, "") for header in headers] for label in ("Paper", "Table", "Hardware")}
    facts["Published"] = [spec.reference.get("source", "") for spec in rows]
    facts["Launch"] = [f"beyondpixel launch {location}"]
    texts = {label: [text for text in dict.fromkeys(found) if text] for label, found in facts.items()}
    return {label: found for label, found in texts.items() if found}
