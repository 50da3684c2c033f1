"""Hand cells to SLURM through submitit: an array job, one cell an element."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beyondpixel.experiments.errors import Stopped, UserError
from beyondpixel.experiments.launch.cell import process_rank, run_cell
from beyondpixel.experiments.launch.lock import HeldError, RunLock
from beyondpixel.experiments.launch.queue import living_jobs
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.experiments.starting import start_over

if TYPE_CHECKING:
    from beyondpixel.experiments.launch.cells import Cell

# a run may be stopped by its time limit as often as it needs, as long as it makes steps in between
TIMEOUTS = 1000
NO_LIMIT = 100_000
LONGEST_WARNING_S = 120
SHORTEST_WARNING_S = 15


@dataclass(frozen=True)
class Resources:
    """What each cell gets from SLURM.

    Attributes:
        gpus: GPUs a node; 0 runs on the CPU. There is one task a GPU.
        nodes: nodes of one cell.
        minutes: time limit. A cell that needs longer is requeued and resumes.
        partition: SLURM's partition; None is the cluster's default.
        max_parallel: cells that run at a time; None is all.
        cpus: CPUs of one task; None leaves that to the cluster.
        memory: memory a node, such as `32G`; None leaves that to the cluster.
        options: further options of sbatch, such as `account`.
    """

    gpus: int = 1
    nodes: int = 1
    minutes: int = 240
    partition: str | None = None
    max_parallel: int | None = None
    cpus: int | None = None
    memory: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def devices(self) -> dict[str, int]:
        """The trainer's keys for these resources; none for one device, so that a run is the same wherever it runs."""
        keys = {"trainer.devices": max(1, self.gpus), "trainer.num_nodes": self.nodes}
        return {key: value for key, value in keys.items() if self.gpus * self.nodes > 1 or value > 1}

    def warning_s(self) -> int:
        """Seconds before the time limit at which SLURM says that it comes: a tenth of it, 2 minutes at most."""
        return min(LONGEST_WARNING_S, max(SHORTEST_WARNING_S, self.minutes * 6))

    def parameters(self, name: str) -> dict[str, Any]:
        """submitit's parameters."""
        given: dict[str, Any] = {
            "job_name": name,
            "nodes": self.nodes,
            "ntasks_per_node": max(1, self.gpus),
            "gpus_per_node": self.gpus or None,
            "time": self.minutes,
            "cpus_per_task": self.cpus,
            "mem": self.memory,
            "partition": self.partition,
            "array_parallelism": self.max_parallel or NO_LIMIT,
            "signal_delay_s": self.warning_s(),
            # one task that fails must not leave the others waiting for it
            "srun_args": ["--kill-on-bad-exit=1"],
            # preemption and the failure of a node bring the job back
            "additional_parameters": {"requeue": True, **self.options},
        }
        return {key: value for key, value in given.items() if value is not None}


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
        self._began = time.monotonic()
        self._first_step = folder.state.get("step", 0)
        try:
            # for a moment the launcher has the lock, and for two minutes a node that died may seem to have it
            self.run(self.path, patience=180)
        except HeldError as error:
            print(f"beyondpixel: {error}", file=sys.stderr)
        except Stopped:
            if process_rank() == 0 and not _is_being_ended():
                signal.raise_signal(signal.SIGUSR2)  # submitit's handler, back in its place: it requeues and exits

    def checkpoint(self) -> Any:
        """What submitit is to run after the requeue: the same again; None if that would never end."""
        from submitit.helpers import DelayedSubmission

        folder = RunFolder(self.path)
        minutes = (time.monotonic() - self._began) / 60
        if folder.state.get("step", 0) <= self._first_step and minutes > self.minutes / 2:
            error = f"no step was finished within the time limit of {self.minutes} minutes; give more with --time"
            folder.update_state(status="failed", error=error)
            return None
        return DelayedSubmission(SlurmCell(self.path, self.minutes, self.run))


def check_slurm(resources: Resources, mistakes: list[str]) -> None:
    """Whether cells can be submitted from here.

    Args:
        resources: what they are to get.
        mistakes: takes what is wrong.
    """
    if find_spec("submitit") is None:
        mistakes.append("--executor slurm needs the package submitit: pip install 'beyondpixel[slurm]'")
    missing = [program for program in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(program) is None]
    if missing:
        mistakes.append(
            f"--executor slurm: {', '.join(missing)} cannot be found; launch on a node from which jobs are submitted, "
            "or leave --executor away to run here"
        )
        return
    known = _ask("sinfo", "--noheader", "--format", "%R").split()
    if resources.partition and known and not set(resources.partition.split(",")) <= set(known):
        mistakes.append(
            f"--partition {resources.partition}: SLURM has no such partition; it has {', '.join(dict.fromkeys(known))}"
        )


def submit(
    cells: Sequence[Cell],
    resources: Resources,
    *,
    output: Path,
    say: Callable[[str], None],
    overwrite: bool = False,
    run: Callable[..., None] = run_cell,
) -> list[str]:
    """Submit cells as one array job; they go on without this process.

    Args:
        cells: what to run.
        resources: what each gets.
        output: the folder that holds the tables' folders; submitit's files go to `slurm` below it.
        say: is told what happens.
        overwrite: remove what an earlier run left, once SLURM has accepted the new one.
        run: what does a cell.

    Returns:
        The jobs' numbers.

    Raises:
        UserError: if SLURM refuses the job.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    launch_id = secrets.token_hex(3)
    # a folder for each launch: a cluster that was set up anew gives the same job numbers again
    executor = SlurmExecutor(output.absolute() / "slurm" / launch_id, max_num_timeout=TIMEOUTS)
    executor.update_parameters(**resources.parameters(f"beyondpixel-{launch_id}"))
    with ExitStack() as locks:
        mine = _take(cells, locks, say)  # a job that starts at once waits until they are prepared
        if not mine:
            return []
        try:
            with executor.batch():
                jobs = [
                    executor.submit(SlurmCell(cell.folder.path.absolute(), resources.minutes, run)) for cell in mine
                ]
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            raise UserError(f"SLURM refused the job, and nothing was started: {error}") from error
        for cell, job in zip(mine, jobs, strict=True):
            if overwrite:
                start_over(cell.folder)
            cell.prepare()
            queued = {} if cell.folder.finished else {"status": "queued"}
            cell.folder.update_state(**queued, job=job.job_id)
            say(f"{cell.name} is SLURM job {job.job_id}, log: {cell.folder.log_file}")
    numbers = [job.job_id for job in jobs]
    main = numbers[0].split("_")[0]
    say(f"Watch them with: squeue --job {main}; the same command with --dry-run shows where each run is")
    say(f"Cancel them with: scancel {main}; launched again, they go on from their checkpoints")
    return numbers


def _take(cells: Sequence[Cell], locks: ExitStack, say: Callable[[str], None]) -> list[Cell]:
    """Those of the cells that no other launcher has taken meanwhile."""
    taken = []
    for cell in cells:
        try:
            locks.enter_context(RunLock(cell.folder.lock_file, patience=0))
            taken.append(cell)
        except HeldError as error:
            say(f"{cell.name} is left alone: {error}")
    living = living_jobs()
    for cell in [cell for cell in taken if cell.folder.state.get("job") in living]:
        say(f"{cell.name} is left alone: it is SLURM job {cell.folder.state['job']} already")
        taken.remove(cell)
    return taken


def minutes_of(time_limit: str) -> int:
    """SLURM's ways to write a time limit, in minutes, rounded up.

    Raises:
        UserError: for anything else.

    Example:
        >>> minutes_of("90"), minutes_of("4:00:00"), minutes_of("1-12"), minutes_of("2:30")
        (90, 240, 2160, 3)
    """
    days, dash, rest = time_limit.rpartition("-")
    parts = rest.split(":")
    numeric = all(re.fullmatch(r"\d+", part) for part in ([days, *parts] if dash else parts))
    if not numeric or len(parts) > 3:
        raise UserError(f"--time {time_limit}: expected minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, such as 4:00:00")
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    total = (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)
    if total < 1:
        raise UserError(f"--time {time_limit}: expected at least a minute")
    return total


def _is_being_ended() -> bool:
    """Whether SLURM has cancelled or requeued this job already, so that it must not be requeued once more."""
    found = re.search(r"JobState=(\w+)", _ask("scontrol", "--oneliner", "show", "job", os.environ["SLURM_JOB_ID"]))
    return found is not None and found[1] != "RUNNING"


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return ""


def _log_to(file: Path) -> None:
    """Send what this process and its children say to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"log: {file}", flush=True)
    with file.open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
