"""Merge a run's parts of W&B logs, which may be damaged, and its metrics.jsonl into one W&B log."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.wandb_arguments import run_arguments
from beyondpixel.experiments.wandb_log import new_record, read_records, write_records

Key = tuple[str, ...]  # of a value in W&B's history, one part per level of nesting
Row = tuple[int, dict[Key, str]]  # step of the training, and values as JSON
STEP = "trainer/global_step"
CLOCKS: tuple[Key, ...] = (("_timestamp",), ("_runtime",))
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
    kept = (record for record in records if record.WhichOneof("record_type") not in REPLACED)
    target.mkdir(parents=True)
    write_records(
        target / f"run-{start.run.run_id}.wandb", [header, start, *kept, *_history(run, records), *_end_of(run)]
    )
    for folder in (part / "files" for part in parts):
        if folder.exists():
            shutil.copytree(folder, target / "files", dirs_exist_ok=True)


def _end_of(run: RunFolder) -> tuple[Any, Any]:
    summary, end = new_record(), new_record()
    for name, value in run.summary.items():
        summary.summary.update.add(key=name, value_json=json.dumps(value))
    end.exit.exit_code = 0 if run.status.is_finished else 1
    return summary, end


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
    times = {step: {path: values[path] for path in CLOCKS if path in values} for step, values in found}
    rows = sorted([*map(_row_of_line, run.metrics()), *_media(found)], key=itemgetter(0))  # keeps the order in a step
    latest: Mapping[Key, str] = {}
    history = []
    for number, (step, values) in enumerate(rows):
        latest = times.get(step) or latest
        history.append(_history_record(number, {**latest, **values, (STEP,): str(step)}))
    return history


def _media(rows: Iterable[Row]) -> Iterable[Row]:
    """Rows with media, once: a resumed run has logged the images after its checkpoint twice."""
    found = ((step, values) for step, values in rows if any(len(path) > 1 for path in values))
    return {(step, tuple(sorted(path[0] for path in values))): (step, values) for step, values in found}.values()


def _row_of_line(line: Mapping[str, float]) -> Row:
    # json writes NaN as W&B does
    return int(line["step"]), {(name,): json.dumps(line[name]) for name in line if name != "step"}


def _row(history: Any) -> Row | None:
    values = {tuple(item.nested_key) or (item.key,): item.value_json for item in history.item}
    step = values.pop((STEP,), None)
    values.pop(("_step",), None)
    return None if step is None else (int(float(step)), values)


def _history_record(number: int, values: Mapping[Key, str]) -> Any:
    record = new_record()
    record.history.step.num = number
    for path, value in {**values, ("_step",): str(number)}.items():
        record.history.item.add(nested_key=path, value_json=value)
    return record
