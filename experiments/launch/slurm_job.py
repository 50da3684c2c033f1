"""Job function for SLURM: execute one run and handle SLURM's stop signals."""

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
    """Job function that submitit pickles: execute a run and handle SLURM's stop signals.

    submitit requeues the job as soon as it receives SLURM's warning signal. During a training, the training's handler
    receives the signal first, finishes the step and saves a checkpoint; then the signal is passed on to submitit. Only
    submitit requeues: Lightning, whose plugin for SLURM would do that as well, never receives the signal.

    Attributes:
        path: the run's folder.
        minutes: the job's time limit.
        job: function that executes the run.
    """

    path: Path
    minutes: int
    job: Callable[..., None] = run_job

    def __call__(self) -> None:
        """Execute or resume the run."""
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
            if process_rank() == 0 and not _is_ending():
                signal.raise_signal(signal.SIGUSR2)  # submitit's handler, restored by now, requeues and exits

    def begin(self, folder: RunFolder, *, now: float) -> None:
        """Record the start time of this attempt and the progress of the run."""
        self._began = now
        self._progress = _progress(folder)

    def checkpoint(self) -> Any:
        """Job for submitit to run after the requeue, the same again; None if it would never end."""
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


def _is_ending() -> bool:
    """Whether SLURM has already cancelled or requeued this job, so that it must not be requeued again."""
    output = ask("scontrol", "--oneliner", "show", "job", os.environ["SLURM_JOB_ID"])
    found = re.search(r"JobState=(\w+)", output or "")
    return found is not None and found[1] != "RUNNING"


def _log_to(file: Path) -> None:
    """Redirect the output of this process and its children to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"log: {file}", flush=True)
    with file.open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
