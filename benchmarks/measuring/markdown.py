"""Conversion of a benchmark's record to Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def shape(sizes: Iterable[int]) -> str:
    """Format the shape of a tensor."""
    return "×".join(map(str, sizes))


def times_table(cases: Iterable[tuple[Sequence[object], dict[str, Any]]], columns: Sequence[str], baseline: str) -> str:
    """Format a table with one line per version of each case: milliseconds, and speedup over the baseline.

    Args:
        cases: cells that describe the case, one per column, and its times as returned by `race`.
        columns: headers of these cells.
        baseline: the version that the ratios refer to.
    """
    rows = []
    for cells, times in cases:
        direct = times[baseline]
        for version, measured in times.items():
            low, median, high = measured["quartiles"]
            ratios = direct["fastest"] / measured["fastest"], direct["quartiles"][1] / median
            values = f"{measured['fastest']:.1f}", f"{median:.1f} ({low:.1f} – {high:.1f})"
            rows.append((*cells, version, *values, *(f"{ratio:.1f}" for ratio in ratios)))
    return table((*columns, "version", "fastest, ms", "median (quartiles), ms", "× fastest", "× median"), rows)


def conditions(record: dict[str, Any]) -> str:
    """Describe the conditions of the measurement."""
    machine, versions = record["machine"], record["versions"]
    gpu = machine["gpu"] or "no GPU, so nothing is measured on CUDA"
    changed = " with uncommitted changes" if record["changed"] else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {gpu}; PyTorch {versions['torch']}, "
        f"Python {versions['python']}, {record['threads']} threads; load {record['load_before']:.1f} before and "
        f"{record['load_after']:.1f} after.\n`{record['command']}` at commit {record['commit'][:7]}{changed}, "
        f"{record['started']}."
    )
