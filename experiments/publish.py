"""`beyondpixel publish`: copy finished runs as data that can be committed.

`results/<table>/<date>_<machine>/` holds `runs.csv`, a line per run or evaluation, and the run folders without weights,
images and logs: `beyondpixel compare results/<table>/<date>_<machine>` recomputes every interval from pixel counts.
"""

from __future__ import annotations

import datetime
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from beyondpixel.experiments.checksums import trained_checksum
from beyondpixel.experiments.compare.confounders import is_uncommitted
from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.compare.rows import Comparison, compare_runs
from beyondpixel.experiments.compare.tables import SPEED, row_columns
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run.folder import RunFolder, write_atomically

METRIC = "test/mIoU"
COPIED = ("metrics.jsonl", "summary.json", "state.json", "confusion.npz", "test_images.npz")


def publish(
    outputs: Sequence[Path], *, results: Path = Path("results"), machine: str | None = None, allow: str | None = None
) -> list[Path]:
    """Copy finished runs into a folder of results, refusing runs that cannot be reproduced or compared.

    Args:
        outputs: Folders with runs, e.g. outputs/camvid_small.
        results: The folder of all results.
        machine: The machine's name in the folder's name; by default the device in the record of the first run.
        allow: Publish despite uncommitted code or confounders for this reason, which is recorded in runs.csv.

    Returns:
        The folders written, one per table.

    Raises:
        UserError: for uncommitted code, rows that differ in more than their axes, and folders that exist.
    """
    comparison = compare_runs(read_runs(outputs), METRIC)
    problems = _problems(comparison)
    if problems and not allow:
        raise UserError(
            "these runs are not published:\n  "
            + "\n  ".join(problems)
            + "\nlaunch them again with one clean commit and one set of versions, or give the reason: --allow REASON"
        )
    parts = {}
    for table in comparison.tables:
        part = comparison.table(table)
        if len(part.scored):
            parts[_folder(results / table, machine or _machine(part.scored.iloc[0]["record"]))] = part
    existing = [str(folder) for folder in parts if folder.exists()]
    if existing:
        raise UserError(f"{', '.join(existing)} exists; remove it, or name another machine with --machine")
    for folder, part in parts.items():
        _write(part, folder, allow)
        print(f"Results written to {folder}")
    return list(parts)


def _machine(record: dict[str, Any]) -> str:
    environment = record.get("environment") or {}
    return str(environment.get("device") or environment.get("platform") or "unknown")


def _folder(parent: Path, machine: str) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    return parent / f"{datetime.date.today().isoformat()}_{slug}"


def _write(comparison: Comparison, folder: Path, allow: str | None) -> None:
    """Write the finished runs of one table, and runs.csv last."""
    lines = []
    for line in comparison.scored.to_dict("records"):
        target = folder / line["record"]["row"] / f"seed{line['seed']}"
        if line["evaluation"]:
            target = target / "evaluations" / line["run"].path.name
        _copy(line["run"], target)
        lines.append({**_run_line(line), "folder": str(target.relative_to(folder)), "allowed": allow})
    of_rows = row_columns(comparison).drop(columns="table")
    frame = of_rows[["row"]].merge(pd.DataFrame(lines), on="row").merge(of_rows, on="row")
    write_atomically(folder / "runs.csv", frame.to_csv(index=False, lineterminator="\n"))


def _problems(comparison: Comparison) -> list[str]:
    """Reasons not to publish the runs, one text each."""
    problems = []
    for line in comparison.scored.to_dict("records"):
        if line["commit"] is None or is_uncommitted(line["commit"]):
            what = "uncommitted changes in the code" if line["commit"] else "commit unknown"
            problems.append(f"{line['folder']}: {what}")
    for row in comparison.rows.to_dict("records"):
        found = [text for text in row["confounders"] if not text.startswith("uncommitted")]
        if found:
            problems.append(f"{row['table']}/{row['row']}: {'; '.join(found)}")
    return problems + [f"damaged: {text}" for text in comparison.damaged]


def _run_line(line: dict[str, Any]) -> dict[str, Any]:
    """The values of a single run in its line of runs.csv."""
    run: RunFolder = line["run"]
    record = line["record"]
    evaluation = run.record.get("evaluation") or {}
    return {
        "row": line["row"],
        "seed": line["seed"],
        **{name: value for name, value in run.summary.items() if name.startswith(("test/", "val/"))},
        "steps": line["steps"],
        "seconds": _training_seconds(RunFolder(line["training"])),
        "peak_memory_mb": run.summary.get("train/peak_memory_mb"),
        "commit": line["commit"],
        "data_fingerprint": (record.get("data") or {}).get("fingerprint"),
        "checkpoint": evaluation.get("checkpoint") or trained_checksum(run),
        "published_source": line["reference"].get("source"),
        "deviations": line["reference"].get("deviations"),
    }


def _training_seconds(run: RunFolder) -> float | None:
    """Seconds of all training steps, from the logged images per second, without validations and interruptions."""
    batch = (run.record.get("data") or {}).get("batch_size") or 0
    batch *= run.config.get("trainer", {}).get("accumulate_grad_batches") or 1  # a step is an optimizer step
    seconds, before = 0.0, 0
    for line in run.metrics():
        if line.get(SPEED, 0) > 0:
            steps = int(line["step"]) + 1  # counted from 0
            seconds += (steps - before) * batch / line[SPEED]
            before = steps
    return round(seconds, 1) or None


def _copy(run: RunFolder, target: Path) -> None:
    """Copy the files that scores are recomputed from; absolute paths of this machine are cut to their last part."""
    target.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (run.path / name).exists():
            shutil.copyfile(run.path / name, target / name)
    copy = RunFolder(target)
    copy.record = _without_paths(run.record)
    if run.config:
        copy.config = _without_paths(run.config)


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_paths(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value
