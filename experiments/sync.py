"""Upload of runs that W&B logged offline.

W&B's own `wandb sync` does the upload, one process per run, and leaves a file `*.wandb.synced` beside an uploaded log.
Runs with that file are skipped, whoever uploaded them. An interrupted upload has none, so a second call repeats it.

A run that was killed or resumed has one part per attempt; the parts may lack some steps and have others twice. They are
merged before the upload, with the run's metrics.jsonl (`wandb_merge.py`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run.folder import RunFolder, Status, find_runs
from beyondpixel.experiments.run.processes import kill_with_children
from beyondpixel.experiments.wandb_log import UNDELIVERED
from beyondpixel.experiments.wandb_merge import ended_well, log_of, merge_parts
from beyondpixel.experiments.wandb_server import offline_reason

COMMAND = (sys.executable, "-P", "-m", "wandb", "sync")
# a run whose status is running, but that has written nothing for this long, was killed
SECONDS_UNTIL_DEAD = 600.0
ERROR_LINES = 3
MERGED = "merged"


Pending = list[tuple[RunFolder, list[Path]]]  # runs with their folders below `wandb`, oldest first


def sync(
    folders: list[Path],
    *,
    jobs: int = 4,
    timeout: float = 900.0,
    dry_run: bool = False,
) -> list[RunFolder]:
    """Upload all offline runs in some folders and print the outcome of each; uploaded runs are skipped.

    Args:
        folders: where the run folders are.
        jobs: how many runs to upload at the same time.
        timeout: seconds after which the upload of one run is given up, so that a silent server blocks nothing.
        dry_run: only show what would be uploaded.

    Returns:
        The runs uploaded, or with `dry_run` those that would be.

    Raises:
        UserError: before anything starts if a folder does not exist, a number is out of range or W&B cannot be reached;
            after all other uploads if one failed.
    """
    if jobs < 1 or timeout <= 0:
        raise UserError(f"--jobs must be at least 1 and --timeout above 0, got {jobs} and {timeout}")
    console = Console(soft_wrap=True, markup=False)
    pending = _pending_uploads(folders, console)
    if not pending:
        console.print("Nothing to upload")
        return []
    if dry_run:
        for run, parts in pending:
            new = sum(not is_uploaded(part) for part in parts)
            console.print(f"{run.path}: would be uploaded ({new} part(s))")
    else:
        _upload_all(pending, jobs, timeout, console)
    return [run for run, _ in pending]


def parts_of(run: RunFolder) -> list[Path]:
    """W&B's folders of a run that W&B may not have uploaded itself, oldest first."""
    online = (part for part in run.path.glob("wandb/run-*-*") if (part / UNDELIVERED).exists() or not ended_well(part))
    return sorted([*run.path.glob("wandb/offline-run-*-*"), *online], key=lambda part: part.name.split("run-")[1])


def is_uploaded(part: Path) -> bool:
    """Whether a folder was marked as uploaded after the last write to it."""
    log, marker = log_of(part), _marker_of(part)
    return marker.exists() and (log is None or marker.stat().st_mtime >= log.stat().st_mtime)


def is_going_on(run: RunFolder, part: Path) -> bool:
    """Whether a run is still writing to an offline folder."""
    log = log_of(part)
    silent = time.time() - log.stat().st_mtime if log else SECONDS_UNTIL_DEAD
    # W&B's log of a damaged run can still be uploaded
    return silent < SECONDS_UNTIL_DEAD and run.status == Status.RUNNING


def _pending_uploads(folders: Sequence[str | Path], console: Console) -> Pending:
    pending = []
    for run in find_runs(*folders):
        parts = parts_of(run)
        if all(map(is_uploaded, parts)):
            continue
        if is_going_on(run, parts[-1]):
            console.print(f"{run.path}: still running, skipped")
        else:
            pending.append((run, parts))
    return pending


def _upload_all(pending: Pending, jobs: int, timeout: float, console: Console) -> None:
    """Upload everything, print the outcome of each run, and raise an error that names the runs that failed."""
    reason = offline_reason()
    if reason is not None:
        raise UserError(
            f"nothing was uploaded, {len(pending)} run(s) are pending: {reason}; log in with `wandb login` or set "
            "WANDB_API_KEY, unset WANDB_MODE, and try again where there is a network"
        )
    errors: list[str | None] = []
    processes: list[subprocess.Popen[str]] = []
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(lambda one: _upload(one[0], one[1], timeout, processes), pending)
        try:
            for number, ((run, _), error) in enumerate(zip(pending, results, strict=True), start=1):
                errors.append(error)
                outcome = "uploaded" if error is None else f"failed: {error}"
                console.print(f"[{number}/{len(pending)}] {run.path}: {outcome}")
        except BaseException:  # Ctrl-C: cancel pending uploads and end running ones
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                kill_with_children(process)
            raise
    failed = [str(run.path) for (run, _), error in zip(pending, errors, strict=True) if error is not None]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(pending)} uploads failed: {', '.join(failed)}; run the command again to retry them"
        )


def _marker_of(part: Path) -> Path:
    log = log_of(part)
    return part / f"{log.name if log else 'run-' + part.name.rpartition('-')[2] + '.wandb'}.synced"


def _upload(
    run: RunFolder, parts: Sequence[Path], timeout: float, processes: list[subprocess.Popen[str]]
) -> str | None:
    """Upload one run and return the error, or None; parts are merged, unless the only one is complete."""
    if len(parts) == 1 and parts[0].name.startswith("offline-") and ended_well(parts[0]):
        return _upload_folder(run, parts[0], timeout, processes)
    # named as W&B names the folders that it uploads
    merged = run.path / "wandb" / MERGED / f"offline-{parts[-1].name.removeprefix('offline-')}"
    shutil.rmtree(merged.parent, ignore_errors=True)  # left by an upload that was killed
    try:
        merge_parts(run, parts, merged)
        error = _upload_folder(run, merged, timeout, processes)
    except (OSError, UserError, KeyError, ValueError) as damage:
        return f"its W&B folders could not be merged: {type(damage).__name__}: {damage}"
    finally:
        shutil.rmtree(merged.parent, ignore_errors=True)
    if error is None:
        for part in parts:
            _marker_of(part).touch()
    return error


def _upload_folder(run: RunFolder, part: Path, timeout: float, processes: list[subprocess.Popen[str]]) -> str | None:
    process = subprocess.Popen(
        [*COMMAND, str(part.resolve())],
        cwd=run.path,  # W&B writes a log to `wandb` in the working directory
        stdin=subprocess.DEVNULL,  # nobody can answer a prompt
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # to end W&B's own service process with it
    )
    processes.append(process)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_with_children(process)
        return f"not finished after {timeout:g} s; raise --timeout if the run is large"
    if process.returncode == 0 and is_uploaded(part):
        return None
    message = " / ".join(output.strip().splitlines()[-ERROR_LINES:])
    return message or f"`{' '.join(COMMAND)}` exited with code {process.returncode} and no output"
