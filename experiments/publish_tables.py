"""Tables of README and docs, generated from published results.

A table is between `<!-- results: TABLE -->` and `<!-- /results -->`. The table's name may be followed by the baseline
of the differences, the rows to show (default: all), and additional scores with a column each:
`<!-- results: TABLE baseline=ROW rows=ROW,ROW test/boundary_F -->`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.compare.rows import Comparison, compare_runs
from beyondpixel.experiments.compare.tables import as_markdown, main_table
from beyondpixel.experiments.compare.units import NOTHING, unit_of
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.publish import METRIC
from beyondpixel.experiments.run.folder import find_runs, write_atomically

MARKED = re.compile(
    r"(?P<begin><!-- results: (?P<table>\S+)(?: baseline=(?P<baseline>\S+))?"
    r"(?: rows=(?P<rows>\S+))?(?P<also>(?: \S+)*) -->\n)"
    r".*?(?P<end><!-- /results -->)",
    re.DOTALL,
)


def update_tables(files: Sequence[Path], *, results: Path = Path("results"), check: bool = False) -> list[Path]:
    """Write the tables between `<!-- results: TABLE -->` and `<!-- /results -->` from published results.

    Args:
        files: Markdown files.
        results: The folder of all results.
        check: Fail if a table differs instead of writing it.

    Returns:
        The files that changed.

    Raises:
        UserError: if a file does not exist, a table has no results, or with `check` a file's tables differ from the
            results.
    """
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise UserError(f"no such file: {', '.join(missing)}; expected Markdown files")
    changed = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        fresh = MARKED.sub(lambda marked: marked["begin"] + _results_table(results, marked) + marked["end"], text)
        if fresh != text:
            changed.append(file)
            if not check:
                write_atomically(file, fresh)
                print(f"Tables written in {file}")
    if check and changed:
        raise UserError(f"tables differ from {results}: {', '.join(map(str, changed))}; run `beyondpixel tables`")
    return changed


def _results_table(results: Path, marked: re.Match[str]) -> str:
    """The Markdown table of a table's published results, as `beyondpixel compare` makes it.

    Rows include their additional evaluations. Of a row and seed that was published several times, only the last counts.
    Where papers have numbers, the table shows ours, the paper's and their difference, with the known deviations from
    the paper's setting.

    Raises:
        UserError: if there are no results, or none of a row.
    """
    folder, rows = results / marked["table"], marked["rows"] and marked["rows"].split(",")
    runs = _newest_runs(folder, rows)
    comparison = compare_runs(read_runs(runs), METRIC, baseline=marked["baseline"], also=marked["also"].split())
    table = main_table(comparison, narrow=True)
    used = sorted({run.relative_to(folder).parts[0] for run in runs})
    notes = [*table.notes, f"Data: {', '.join(f'`{results.name}/{folder.name}/{name}`' for name in used)}."]
    return as_markdown(replace(table, cells=_with_papers(table.cells, comparison), notes=notes))


def _newest_runs(folder: Path, rows: Sequence[str] | None) -> list[Path]:
    """The folder of each row and seed that was published last; None for all rows."""
    published = sorted(file.parent for file in folder.glob("*/runs.csv"))
    if not published:
        raise UserError(f"no results of {folder.name} in {folder.parent}; publish them with `beyondpixel publish`")
    newest = {run.path.relative_to(one): run.path for one in published for run in find_runs(one)}
    available = {path.parts[0] for path in newest}
    missing = sorted(set(rows or ()) - available)
    if missing:
        names = ", ".join(sorted(available))
        raise UserError(f"no results of the rows {', '.join(missing)} in {folder}; it has {names}")
    return [run for path, run in newest.items() if rows is None or path.parts[0] in rows]


def _with_papers(cells: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """Where papers have numbers, add the difference to them and the known deviations from their setting."""
    rows, unit = comparison.rows, unit_of(METRIC)
    if rows["published"].isna().all():
        return cells
    ours = f"{METRIC}{unit.label}"
    cells = cells.rename(columns={ours: f"ours, {ours}", "published (%)": "paper’s (%)"})
    difference = (rows["mean"] - rows["published"] / 100).map(unit.difference)
    cells.insert(cells.columns.get_loc("paper’s (%)") + 1, "ours − paper’s", difference)
    references = comparison.runs.groupby("row", sort=False)["reference"].first()
    return cells.assign(**{"known deviations": [references[row].get("deviations", NOTHING) for row in rows["row"]]})
