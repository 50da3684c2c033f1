"""What a SLURM job does: one run, and the stops that SLURM asks for."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beyondpixel.experiments.errors import Stopped
from beyondpixel.experiments.job import HELD, run_job
from beyondpixel.experiments.launch.lock import HeldError
from beyondpixel.experiments.launch.queue import ask
from beyondpixel.experiments.run.folder import RunFolder, Status
from beyondpixel.experiments.run.processes import process_rank


@dataclass
class SlurmRun:
    """The function of a job, which submitit pickles: the run, with the stops that SLURM asks for.

    submitit answers SLURM's warning by requeueing the job at once. While a training goes on, its own handler takes the
    warning first, so that the step is finished and a checkpoint saved; then it is handed on to submitit, which alone
    requeues: Lightning, whose plugin for SLURM would do that as well, never sees it.

    Attributes:
        path: the run's folder.
        minutes: the job's time limit.
        job: what does the run.
    """

    path: Path
    minutes: int
    job: Callable[..., None] = run_job

    def __call__(self) -> None:
        """Do the run, or resume it."""
        folder = RunFolder(self.path)
        if process_rank() == 0:
            _log_to(folder.log_file)
        self.begin(folder, now=time.monotonic())
        try:
            # a file system may take a while to release the lock of a node that died
            self.job(self.path, patience=120)
        except HeldError as error:
            print(f"beyondpixel: {error}", file=sys.stderr)
            sys.exit(HELD)  # not 0: srun then ends the job's other tasks, which wait for this one
        except Stopped:
            if process_rank() == 0 and not _is_being_ended():
                signal.raise_signal(signal.SIGUSR2)  # submitit's handler, back in its place: it requeues and exits

    def begin(self, folder: RunFolder, *, now: float) -> None:
        """Note when this turn began, and how far the run was."""
        self._began = now
        self._progress = _progress(folder)

    def checkpoint(self) -> Any:
        """What submitit is to run after the requeue: the same again; None if that would never end."""
        from submitit.helpers import DelayedSubmission

        folder = RunFolder(self.path)
        minutes = (time.monotonic() - self._began) / 60
        if _progress(folder) == self._progress and minutes > self.minutes / 2:
            what = f"no step, test or evaluation was finished within the time limit of {self.minutes} minutes"
            folder.update_state(status=Status.FAILED, error=f"{what}; give more with --time")
            return None
        return DelayedSubmission(SlurmRun(self.path, self.minutes, self.job))


def _progress(folder: RunFolder) -> tuple[int, bool, int]:
    return folder.state.get("step") or 0, folder.confusion_file.exists(), len(folder.evaluations())


def _is_being_ended() -> bool:
    """Whether SLURM has cancelled or requeued this job already, so that it must not be requeued once more."""
    said = ask("scontrol", "--oneliner", "show", "job", os.environ["SLURM_JOB_ID"])
    found = re.search(r"JobState=(\w+)", said or "")
    return found is not None and found[1] != "RUNNING"


def _log_to(file: Path) -> None:
    """Send what this process and its children say to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"log: {file}", flush=True)
    with file.open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
