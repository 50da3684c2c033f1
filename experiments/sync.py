"""Upload of what W&B logged offline.

W&B's own `wandb sync` does the work, one process a run, and leaves a file `*.wandb.synced` beside what is up: that file
says what is done, whoever did it. An upload that was cut off has none, so a second call takes it up again.

A run that was killed or resumed has a part for each time it went on; the parts neither hold everything nor each step
once. They are merged before the upload, with the run's metrics.jsonl (`wandb_merge.py`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run.folder import RunFolder, Status, find_runs
from beyondpixel.experiments.run.processes import kill_with_children
from beyondpixel.experiments.tracking import UNDELIVERED, offline_reason
from beyondpixel.experiments.wandb_merge import ended_well, log_of, merge_parts

COMMAND = (sys.executable, "-P", "-m", "wandb", "sync")
# a run that says it is running, but has written nothing for so long, was killed
SECONDS_UNTIL_DEAD = 600.0
LINES_OF_AN_ERROR = 3
MERGED = "merged"


@dataclass(frozen=True)
class Upload:
    """What is to be uploaded of one run.

    Attributes:
        run: the run's folder.
        parts: its folders below `wandb`, oldest first; a resumed run has several.
        merged: where they are merged to; None where the only one can be uploaded as it is.
    """

    run: RunFolder
    parts: tuple[Path, ...]
    merged: Path | None


def sync(
    folders: list[Path],
    *,
    jobs: int = 4,
    timeout: float = 900.0,
    dry_run: bool = False,
) -> list[RunFolder]:
    """Upload all offline runs below some folders and say of each whether it is up.

    Args:
        folders: where the run folders are.
        jobs: how many runs to upload at the same time.
        timeout: seconds after which one run is given up, so that a silent server holds up nothing.
        dry_run: only show what would be uploaded.

    Returns:
        The runs uploaded, or with `dry_run` those that would be.

    Raises:
        UserError: before anything starts if a folder is not there, a number makes no sense or W&B cannot be reached;
            after all others are up if a run failed.
    """
    if jobs < 1 or timeout <= 0:
        raise UserError(f"--jobs must be at least 1 and --timeout above 0, got {jobs} and {timeout}")
    console = Console(soft_wrap=True, markup=False)
    waiting = _waiting(folders, console)
    if dry_run or not waiting:
        for upload in waiting:
            new = sum(not is_uploaded(part) for part in upload.parts)
            console.print(f"{upload.run.path}: would be uploaded ({new} part(s))")
        if not waiting:
            console.print("Nothing to upload")
        return [upload.run for upload in waiting]
    reason = offline_reason()
    if reason is not None:
        raise UserError(
            f"nothing was uploaded, {len(waiting)} run(s) wait: {reason}; log in with `wandb login` or set "
            "WANDB_API_KEY, unset WANDB_MODE, and try again where there is a network"
        )
    failed = _upload_all(waiting, jobs, timeout, console)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(waiting)} uploads failed: {', '.join(str(run.path) for run in failed)}; "
            "call the command again to retry them"
        )
    return [upload.run for upload in waiting]


def parts_of(run: RunFolder) -> list[Path]:
    """W&B's folders of a run that it may not have uploaded itself, oldest first."""
    online = (part for part in run.path.glob("wandb/run-*-*") if (part / UNDELIVERED).exists() or not ended_well(part))
    return sorted([*run.path.glob("wandb/offline-run-*-*"), *online], key=lambda part: part.name.split("run-")[1])


def is_uploaded(part: Path) -> bool:
    """Whether a folder is marked as uploaded, after all that was written to it."""
    log, mark = log_of(part), _mark_of(part)
    return mark.exists() and (log is None or mark.stat().st_mtime >= log.stat().st_mtime)


def is_going_on(run: RunFolder, part: Path) -> bool:
    """Whether a run is still writing to an offline folder."""
    log = log_of(part)
    silent = time.time() - log.stat().st_mtime if log else SECONDS_UNTIL_DEAD
    # of a damaged run, what W&B logged can be uploaded all the same
    return silent < SECONDS_UNTIL_DEAD and run.status == Status.RUNNING


def _waiting(folders: Sequence[str | Path], console: Console) -> list[Upload]:
    waiting = []
    for run in find_runs(*folders):
        parts = tuple(parts_of(run))
        if all(map(is_uploaded, parts)):
            continue
        if is_going_on(run, parts[-1]):
            console.print(f"{run.path}: still running, left for later")
        else:
            whole = len(parts) == 1 and parts[0].name.startswith("offline-") and ended_well(parts[0])
            # as W&B itself names the folders that it uploads
            merged = run.path / "wandb" / MERGED / f"offline-{parts[-1].name.removeprefix('offline-')}"
            waiting.append(Upload(run, parts, None if whole else merged))
    return waiting


def _upload_all(waiting: Sequence[Upload], jobs: int, timeout: float, console: Console) -> list[RunFolder]:
    """Upload everything, saying of each run what became of it; those that failed."""
    errors: list[str | None] = []
    processes: list[subprocess.Popen[str]] = []
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(lambda upload: _upload(upload, timeout, processes), waiting)
        try:
            for number, (upload, error) in enumerate(zip(waiting, results, strict=True), start=1):
                errors.append(error)
                outcome = "uploaded" if error is None else f"failed: {error}"
                console.print(f"[{number}/{len(waiting)}] {upload.run.path}: {outcome}")
        except BaseException:  # Ctrl-C: what goes on is ended, what waits does not begin
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                kill_with_children(process)
            raise
    return [upload.run for upload, error in zip(waiting, errors, strict=True) if error is not None]


def _mark_of(part: Path) -> Path:
    log = log_of(part)
    return part / f"{log.name if log else 'run-' + part.name.rpartition('-')[2] + '.wandb'}.synced"


def _upload(upload: Upload, timeout: float, processes: list[subprocess.Popen[str]]) -> str | None:
    """Upload one run; what went wrong, or None."""
    if upload.merged is None:
        return _upload_folder(upload.run, upload.parts[0], timeout, processes)
    shutil.rmtree(upload.merged.parent, ignore_errors=True)  # of an upload that was killed
    try:
        merge_parts(upload.run, upload.parts, upload.merged)
        error = _upload_folder(upload.run, upload.merged, timeout, processes)
    except (OSError, UserError, KeyError, ValueError) as damage:
        return f"its W&B folders could not be merged: {type(damage).__name__}: {damage}"
    finally:
        shutil.rmtree(upload.merged.parent, ignore_errors=True)
    if error is None:
        for part in upload.parts:
            _mark_of(part).touch()
    return error


def _upload_folder(run: RunFolder, part: Path, timeout: float, processes: list[subprocess.Popen[str]]) -> str | None:
    process = subprocess.Popen(
        [*COMMAND, str(part.resolve())],
        cwd=run.path,  # W&B leaves a log in a folder `wandb` of where it is called
        stdin=subprocess.DEVNULL,  # nobody is there to answer a question
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # W&B starts a service of its own, which has to end with it
    )
    processes.append(process)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_with_children(process)
        return f"no end after {timeout:g} s; raise --timeout if the run is large"
    if process.returncode == 0 and is_uploaded(part):
        return None
    said = " / ".join(output.strip().splitlines()[-LINES_OF_AN_ERROR:])
    return said or f"`{' '.join(COMMAND)}` ended with {process.returncode} and said nothing"
