"""Upload of what W&B logged offline.

W&B's own `wandb sync` does the work, one process a run, and leaves a file `*.wandb.synced` beside what is up: that file
says what is done, whoever did it. An upload that was cut off has none, so a second call takes it up again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run.folder import RunFolder, find_runs
from beyondpixel.experiments.tracking import offline_reason

COMMAND = (sys.executable, "-m", "wandb", "sync")
# a run that says it is running, but has written nothing for so long, was killed
SECONDS_UNTIL_DEAD = 600.0
LINES_OF_AN_ERROR = 3


@dataclass(frozen=True)
class Upload:
    """What is to be uploaded of one run.

    Attributes:
        run: the run's folder.
        parts: its offline folders that are not up, oldest first; a resumed run has several.
    """

    run: RunFolder
    parts: tuple[Path, ...]


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
            console.print(f"{upload.run.path}: would be uploaded ({len(upload.parts)} part(s))")
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


def offline_parts(run: RunFolder) -> list[Path]:
    """W&B's offline folders of a run, oldest first: their names begin with the time."""
    return sorted(part for part in run.path.glob("wandb/offline-run-*") if _log(part) is not None)


def is_uploaded(part: Path) -> bool:
    """Whether W&B has marked an offline folder as uploaded, after all that was written to it."""
    log = _log(part)
    mark = log.with_name(f"{log.name}.synced") if log else None
    return log is not None and mark is not None and mark.exists() and mark.stat().st_mtime >= log.stat().st_mtime


def is_going_on(run: RunFolder, part: Path) -> bool:
    """Whether a run is still writing to an offline folder."""
    log = _log(part)
    silent = time.time() - log.stat().st_mtime if log else SECONDS_UNTIL_DEAD
    return run.state["status"] == "running" and silent < SECONDS_UNTIL_DEAD


def _waiting(folders: Sequence[str | Path], console: Console) -> list[Upload]:
    missing = [str(folder) for folder in folders if not Path(folder).is_dir()]
    if missing:
        raise UserError(f"no such folder: {', '.join(missing)}; expected one that `beyondpixel launch` wrote to")
    runs = {run.path.resolve(): run for folder in folders for run in find_runs(folder)}
    waiting = []
    for run in runs.values():
        parts = tuple(part for part in offline_parts(run) if not is_uploaded(part))
        if parts and is_going_on(run, parts[-1]):
            console.print(f"{run.path}: still running, left for later")
        elif parts:
            waiting.append(Upload(run, parts))
    return waiting


def _upload_all(waiting: Sequence[Upload], jobs: int, timeout: float, console: Console) -> list[RunFolder]:
    """Upload everything, saying of each run what became of it; those that failed."""
    failed = []
    processes: list[subprocess.Popen[str]] = []
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(lambda upload: _upload(upload, timeout, processes), waiting)
        try:
            for number, (upload, error) in enumerate(zip(waiting, results, strict=True), start=1):
                if error is not None:
                    failed.append(upload.run)
                outcome = "uploaded" if error is None else f"failed: {error}"
                console.print(f"[{number}/{len(waiting)}] {upload.run.path}: {outcome}")
        except BaseException:  # Ctrl-C: what goes on is ended, what waits does not begin
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                _end(process)
            raise
    return failed


def _log(part: Path) -> Path | None:
    return next(part.glob("run-*.wandb"), None)


def _upload(upload: Upload, timeout: float, processes: list[subprocess.Popen[str]]) -> str | None:
    """Upload the parts of one run in their order; what went wrong, or None."""
    process = subprocess.Popen(
        [*COMMAND, *(str(part.resolve()) for part in upload.parts)],
        cwd=upload.run.path,  # W&B leaves a log in a folder `wandb` of where it is called
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
        _end(process)
        return f"no end after {timeout:g} s; raise --timeout if the run is large"
    if process.returncode == 0 and all(map(is_uploaded, upload.parts)):
        return None
    said = " / ".join(output.strip().splitlines()[-LINES_OF_AN_ERROR:])
    return said or f"`{' '.join(COMMAND)}` ended with {process.returncode} and said nothing"


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
