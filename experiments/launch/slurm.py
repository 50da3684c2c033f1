"""Hand cells to SLURM through submitit: an array job, one cell an element.

Evaluations are arrays of their own, one for each run that they test, which SLURM starts when that one has succeeded:
a requeue in between does not count as an end, and if it fails they are cancelled.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.cell import run_cell
from beyondpixel.experiments.launch.cells import Cell
from beyondpixel.experiments.launch.evaluations import has_result
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
    """Submit trainings as one array job, and evaluations as others behind it; they go on without this process.

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
    submission = _Submission(resources, output.absolute() / "slurm" / secrets.token_hex(3), say, overwrite, run)
    with ExitStack() as locks:
        mine = _take(cells, locks, say)  # a job that starts at once waits until they are prepared
        jobs = submission.submit([cell for cell in mine if cell.source is None])
        for job, group in _by_awaited_job([cell for cell in mine if cell.source is not None], jobs, say).items():
            jobs |= submission.submit(group, after=job)
    if jobs:
        main = list(dict.fromkeys(number.split("_")[0] for number in jobs.values()))
        say(f"Watch them with: squeue --job {','.join(main)}; the same command with --dry-run shows where each run is")
        say(f"Cancel them with: scancel {' '.join(main)}; launched again, they go on from their checkpoints")
    return list(jobs.values())


@dataclass(frozen=True)
class _Submission:
    """What the arrays of one launch have in common; `folder` is new, as a cluster that was set up anew gives the same
    job numbers again."""

    resources: Resources
    folder: Path
    say: Callable[[str], None]
    overwrite: bool
    run: Callable[..., None]

    def submit(self, cells: Sequence[Cell], after: str | None = None) -> dict[Path, str]:
        """Submit an array of trainings, or of evaluations, which may have to wait for a job; the jobs by folder."""
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if not cells:
            return {}
        evaluates = cells[0].source is not None
        resources = self.resources.of_evaluation() if evaluates else self.resources
        executor = SlurmExecutor(self.folder, max_num_timeout=TIMEOUTS)
        executor.update_parameters(**resources.parameters(f"beyondpixel-{self.folder.name}", after=after))
        try:
            with executor.batch():
                jobs = [
                    executor.submit(SlurmCell(cell.folder.path.absolute(), resources.minutes, self.run))
                    for cell in cells
                ]
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            what = (
                f"the job of {', '.join(cell.name for cell in cells)}"
                if evaluates
                else "the job, and nothing was started"
            )
            raise UserError(f"SLURM refused {what}: {error}") from error
        for cell, job in zip(cells, jobs, strict=True):
            if self.overwrite or (evaluates and not has_result(cell)):
                start_over(cell.folder)
            cell.prepare()
            queued = {} if cell.folder.finished else {"status": "queued"}
            cell.folder.update_state(**queued, job=job.job_id)
            when = f", after job {after}" if after else ""
            self.say(f"{cell.name} is SLURM job {job.job_id}{when}, log: {cell.folder.log_file}")
        return {cell.folder.path: job.job_id for cell, job in zip(cells, jobs, strict=True)}


def _by_awaited_job(
    cells: Sequence[Cell], jobs: Mapping[Path, str], say: Callable[[str], None]
) -> dict[str | None, list[Cell]]:
    """Evaluations by the job that their source is, None where it is done: a dependency is one of a whole array."""
    living = living_jobs() if cells else {}
    groups: dict[str | None, list[Cell]] = {}
    for cell in cells:
        assert cell.source is not None
        state = cell.source.state
        job = jobs.get(cell.source.path) or (state.get("job") if state.get("job") in living else None)
        if job is None and state["status"] != "done":
            say(
                f"{cell.name} is left out until {cell.source_name}, which is running elsewhere, is done; launch it then"
            )
            continue
        groups.setdefault(job, []).append(cell)
    return groups


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
