"""Hand cells to SLURM through submitit: an array job, one cell an element."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.cell import run_cell
from beyondpixel.experiments.launch.cells import Cell
from beyondpixel.experiments.launch.lock import HeldError, RunLock
from beyondpixel.experiments.launch.queue import ask, living_jobs
from beyondpixel.experiments.launch.resources import Resources
from beyondpixel.experiments.launch.slurm_job import SlurmCell
from beyondpixel.experiments.starting import start_over

# a run may be stopped by its time limit as often as it needs, as long as it makes steps in between
TIMEOUTS = 1000


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
    known = ask("sinfo", "--noheader", "--format", "%R").split()
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
