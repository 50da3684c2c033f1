"""Merge a run's parts of W&B logs, which may be damaged, and its metrics.jsonl into one W&B log."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.wandb_arguments import run_arguments
from beyondpixel.experiments.wandb_log import new_record, read_records, write_records

STEP = "trainer/global_step"
# record types that are rewritten, or not needed in a log
REPLACED = frozenset({"header", "run", "history", "summary", "exit", "final", "footer", "request", "preempting"})


def log_of(part: Path) -> Path | None:
    """W&B's log in one of its folders."""
    return next(iter(sorted(part.glob("run-*.wandb"))), None)


def ended_well(part: Path) -> bool:
    """Whether a part of a run was closed, so that its log has everything that was logged."""
    log = log_of(part)
    return log is not None and any(record.HasField("exit") for record in read_records(log))


def merge_parts(run: RunFolder, parts: Sequence[Path], target: Path) -> None:
    """Write one folder for `wandb sync` that holds the whole history of a run, each step once.

    The values come from metrics.jsonl, which a resumed run continues at its checkpoint; images, tables, times, and what
    W&B recorded of the machine come from the parts. Parts without a record of the run are skipped.

    Args:
        run: the run.
        parts: its folders below `wandb`, oldest first.
        target: the folder to make.
    """
    logs = [records for part in parts if (log := log_of(part)) and _start_of(records := read_records(log))]
    records = [record for log in logs for record in log]
    start = _start_of(reversed(records)) or _new_start(run)
    start.run.resume = start.run.resumed = False  # W&B would append to what the server has, instead of replacing it
    header = new_record()
    header.header.version_info.producer = "beyondpixel"
    summary, end = new_record(), new_record()
    for name, value in run.summary.items():
        summary.summary.update.add(key=name, value_json=json.dumps(value))
    end.exit.exit_code = 0 if run.status.is_finished else 1
    kept = (record for record in records if record.WhichOneof("record_type") not in REPLACED)
    target.mkdir(parents=True)
    write_records(
        target / f"run-{start.run.run_id}.wandb", [header, start, *kept, *_history(run, records), summary, end]
    )
    for part in parts:
        _link_files(part / "files", target / "files")


class _Row(NamedTuple):
    """A row of W&B's history: values as JSON, by the path of their key."""

    step: int
    values: Mapping[tuple[str, ...], str]
    times: Mapping[tuple[str, ...], str]

    @property
    def is_media(self) -> bool:
        return any(len(path) > 1 for path in self.values)


def _start_of(records: Iterable[Any]) -> Any:
    return next((record for record in records if record.HasField("run")), None)


def _new_start(run: RunFolder) -> Any:
    """Create the record of a run for which W&B has written none."""
    record = new_record()
    given = run_arguments(run.config, run.record)
    record.run.run_id, record.run.project, record.run.run_group = given["id"], given["project"], given["group"]
    record.run.display_name, record.run.job_type = given["name"], given["job_type"]
    record.run.tags.extend(given["tags"])
    record.run.start_time.FromSeconds(int(run.config_file.stat().st_mtime))
    for name, value in given["config"].items():
        record.run.config.update.add(key=name, value_json=json.dumps(value, default=str))
    return record


def _history(run: RunFolder, records: Iterable[Any]) -> list[Any]:
    """One record per line of metrics.jsonl, and per row with media after the lines of its step."""
    found = [row for record in records if record.HasField("history") and (row := _row(record.history))]
    times = {row.step: row.times for row in found}
    rows = [_row_of_line(line) for line in run.metrics()]
    # a resumed run has logged the images after its checkpoint twice
    rows += {(row.step, tuple(sorted(path[0] for path in row.values))): row for row in found if row.is_media}.values()
    rows.sort(key=lambda row: row.step)  # keeps the order within a step
    latest: Mapping[tuple[str, ...], str] = {}
    history = []
    for number, row in enumerate(rows):
        latest = row.times or times.get(row.step) or latest
        history.append(_history_record(number, {**row.values, (STEP,): str(row.step), **latest}))
    return history


def _row(history: Any) -> _Row | None:
    values = {tuple(item.nested_key) or (item.key,): item.value_json for item in history.item}
    step = values.pop((STEP,), None)
    values.pop(("_step",), None)
    clocks: tuple[tuple[str, ...], ...] = (("_timestamp",), ("_runtime",))
    times = {path: values.pop(path) for path in clocks if path in values}
    return None if step is None else _Row(int(float(step)), values, times)


def _row_of_line(line: Mapping[str, float]) -> _Row:
    # json writes NaN as W&B does
    return _Row(int(line["step"]), {(name,): json.dumps(line[name]) for name in line if name != "step"}, {})


def _history_record(number: int, values: Mapping[tuple[str, ...], str]) -> Any:
    record = new_record()
    record.history.step.num = number
    for path, value in {**values, ("_step",): str(number)}.items():
        record.history.item.add(nested_key=path, value_json=value)
    return record


def _link_files(source: Path, target: Path) -> None:
    """Collect the files of a part, as hard links where the file system supports them."""
    for file in (file for file in source.rglob("*") if file.is_file()):
        name = target / file.relative_to(source)
        name.parent.mkdir(parents=True, exist_ok=True)
        name.unlink(missing_ok=True)
        try:
            os.link(file, name)
        except OSError:
            shutil.copyfile(file, name)
