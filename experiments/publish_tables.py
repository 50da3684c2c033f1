"""Tables of README and docs, made from published results.

A table stands between `<!-- results: TABLE -->` and `<!-- /results -->`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from beyondpixel.experiments.compare.tables import Table, as_markdown
from beyondpixel.experiments.compare.units import NOTHING, Unit
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.publish import METRIC
from beyondpixel.experiments.run.folder import write_atomically

MARKED = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def update_tables(files: Sequence[Path], *, results: Path = Path("results"), check: bool = False) -> list[Path]:
    """Write the tables between `<!-- results: TABLE -->` and `<!-- /results -->` from the newest published results.

    Args:
        files: Markdown files.
        results: The folder of all results.
        check: Fail if a table differs instead of writing it.

    Returns:
        The files that changed.

    Raises:
        UserError: if a table has no results, and with `check` if a file's tables are not those of the results.
    """
    changed = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        fresh = MARKED.sub(lambda found: found[1] + results_table(results, found[2]) + found[3], text)
        if fresh != text:
            changed.append(file)
            if not check:
                write_atomically(file, fresh)
    if check and changed:
        raise UserError(f"tables differ from {results}: {', '.join(map(str, changed))}; run `beyondpixel tables`")
    return changed


def results_table(results: Path, table: str) -> str:
    """The Markdown table of a table's newest results: ours, the paper's, their difference, n and interval.

    Raises:
        UserError: if there are none.
    """
    folders = sorted(file.parent for file in (results / table).glob("*/runs.csv"))
    if not folders:
        raise UserError(f"no results of {table} in {results}; publish them with `beyondpixel publish`")
    runs = pd.read_csv(folders[-1] / "runs.csv")
    rows = runs.groupby("row", sort=False).agg(
        ours=(METRIC, lambda values: 100 * values.mean()),
        low=("row_low", lambda values: 100 * values.iloc[0]),
        high=("row_high", lambda values: 100 * values.iloc[0]),
        published=("published_percent", "first"),
        n=(METRIC, "count"),
        deviations=("deviations", "first"),
    )
    unit = Unit(1.0, " (%)", 2)  # everything is in percent already
    cells = {
        "row": rows.index,
        f"ours, {METRIC} (%)": rows["ours"].map(unit.number),
        "95 % interval": [
            NOTHING if pd.isna(low) else f"{unit.number(low)} … {unit.number(high)}"
            for low, high in zip(rows["low"], rows["high"], strict=True)
        ],
        "n": rows["n"].map(str),
    }
    if rows["published"].notna().any():
        cells["paper’s (%)"] = rows["published"].map(unit.number)
        cells["difference"] = (rows["ours"] - rows["published"]).map(unit.difference)
    if rows["deviations"].notna().any():
        cells["known deviations"] = rows["deviations"].fillna(NOTHING)
    note = (
        "*Intervals: two-level bootstrap over n seeds and test images; with n = 1 over images alone. "
        f"Data: `{results.name}/{table}/{folders[-1].name}`.*"
    )
    return as_markdown(Table(table, pd.DataFrame(cells), notes=[note]))
