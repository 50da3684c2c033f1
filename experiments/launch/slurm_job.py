"""What a SLURM job does: one cell, and the stops that SLURM asks for."""

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
from beyondpixel.experiments.launch.cell import HELD, process_rank, run_cell
from beyondpixel.experiments.launch.lock import HeldError
from beyondpixel.experiments.launch.queue import ask
from beyondpixel.experiments.run_folder import RunFolder


@dataclass
class SlurmCell:
    """What a job does: the cell, with the stops that SLURM asks for. submitit pickles it.

    submitit answers SLURM's warning by requeueing the job at once. While a training goes on, its own handler takes the
    warning first, so that the step is finished and a checkpoint saved; then it is handed on to submitit, which alone
    requeues: Lightning, whose plugin for SLURM would do that as well, never sees it.

    Attributes:
        path: the run's folder.
        minutes: the job's time limit.
        run: what does the cell.
    """

    path: Path
    minutes: int
    run: Callable[..., None] = run_cell

    def __call__(self) -> None:
        """Run the cell, or go on with it."""
        folder = RunFolder(self.path)
        if process_rank() == 0:
            _log_to(folder.log_file)
        self.begin(folder, now=time.monotonic())
        try:
            # for a moment the launcher has the lock, and for two minutes a node that died may seem to have it
            self.run(self.path, patience=180)
        except HeldError as error:
            print(f"beyondpixel: {error}", file=sys.stderr)
            sys.exit(HELD)  # not 0: srun then ends the job's other tasks, which wait for this one
        except Stopped:
            if process_rank() == 0 and not _is_being_ended():
                signal.raise_signal(signal.SIGUSR2)  # submitit's handler, back in its place: it requeues and exits

    def begin(self, folder: RunFolder, *, now: float) -> None:
        """Note when and at which step this turn began."""
        self._began = now
        self._first_step = folder.state.get("step", 0)

    def checkpoint(self) -> Any:
        """What submitit is to run after the requeue: the same again; None if that would never end."""
        from submitit.helpers import DelayedSubmission

        folder = RunFolder(self.path)
        minutes = (time.monotonic() - self._began) / 60
        evaluates = "evaluate" in folder.record  # which begins anew each time
        moved = folder.state.get("step", 0) > self._first_step and not evaluates
        if not moved and minutes > self.minutes / 2:
            what = "the evaluation did not end" if evaluates else "no step was finished"
            error = f"{what} within the time limit of {self.minutes} minutes; give more with --time"
            folder.update_state(status="failed", error=error)
            return None
        return DelayedSubmission(SlurmCell(self.path, self.minutes, self.run))


def _is_being_ended() -> bool:
    """Whether SLURM has cancelled or requeued this job already, so that it must not be requeued once more."""
    found = re.search(r"JobState=(\w+)", ask("scontrol", "--oneliner", "show", "job", os.environ["SLURM_JOB_ID"]))
    return found is not None and found[1] != "RUNNING"


def _log_to(file: Path) -> None:
    """Send what this process and its children say to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"log: {file}", flush=True)
    with file.open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
