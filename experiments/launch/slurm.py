"""Executor for SLURM, through submitit: array jobs with one run per element.

An array holds fewer elements than SLURM's MaxArraySize, so a large launch is several arrays. SLURM limits concurrent
elements within one array only: with `--max-parallel`, each array waits for the one before to end.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.job import run_job
from beyondpixel.experiments.launch.actions import Action, take
from beyondpixel.experiments.launch.lock import HeldError
from beyondpixel.experiments.launch.queue import ask, environment_outside_allocation
from beyondpixel.experiments.launch.slurm_job import SlurmRun
from beyondpixel.experiments.plan import Run

# a run may be stopped by its time limit as often as it needs, as long as it makes steps in between
TIMEOUTS = 1000
DEFAULT_ARRAY_SIZE = 1000
# Jobs wait until their runs are prepared. SLURM checks the requests of a job that begins later, but not of a held one.
LATER = "now+1hour"


def check_slurm(partition: str | None) -> list[str]:
    """Check that runs can be submitted from here; return one sentence per error."""
    errors = []
    if find_spec("submitit") is None:
        errors.append("--executor slurm needs the package submitit: pip install 'beyondpixel[slurm]'")
    missing = [program for program in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(program) is None]
    if missing:
        errors.append(
            f"--executor slurm: {', '.join(missing)} cannot be found; launch on a node from which jobs are submitted, "
            "or omit --executor to run here"
        )
    known = list(dict.fromkeys((ask("sinfo", "--noheader", "--format", "%R") or "").split()))
    if partition and known and not set(partition.split(",")) <= set(known):
        errors.append(f"--partition {partition}: SLURM has no such partition; it has {', '.join(known)}")
    return errors


def submit(
    work: Sequence[tuple[Run, Action]],
    parameters: Mapping[str, Any],
    *,
    output: Path,
    say: Callable[[str], None],
    max_parallel: int | None = None,
    keep: str = "resume",
    job: Callable[..., None] = run_job,
) -> list[str]:
    """Submit runs, which do not depend on this process any more.

    Args:
        work: what to run.
        parameters: submitit's parameters for each run, from `submission_parameters`.
        output: the folder that holds the tables' folders; submitit's files go to `slurm` below it.
        say: receives status messages.
        max_parallel: concurrent runs; None is all.
        keep: what to keep of a checkpoint once its run is done.
        job: function that executes a run.

    Returns:
        The numbers of the array jobs.

    Raises:
        UserError: if SLURM refuses a job; those before it continue.
    """
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config") or "")
    size = max(1, int(found[1]) - 1) if found else DEFAULT_ARRAY_SIZE
    # a new folder, because a reinstalled cluster assigns the same job numbers again
    folder = output.absolute() / "slurm" / secrets.token_hex(4)
    arrays: list[str] = []
    for first in range(0, len(work), size):
        part = work[first : first + size]
        jobs = [SlurmRun(run.folder.path.absolute(), parameters["time"], job) for run, _ in part]
        waits = {"dependency": f"afterany:{arrays[-1]}"} if arrays and max_parallel else {}
        further = {**parameters["additional_parameters"], "begin": LATER, **waits}
        requested = {**parameters, "additional_parameters": further, "array_parallelism": max_parallel or len(part)}
        numbers = _submit_array(jobs, folder, requested, number_before=first)
        arrays.append(numbers[0].partition("_")[0])
        # no job starts before its run is prepared, and a refused job leaves all runs unchanged
        try:
            for (run, action), number in zip(part, numbers, strict=True):
                say(_hand_over(run, action, job=number, log=folder / f"{number}_0_log.err", keep=keep))
        except BaseException:
            ask("scancel", arrays[-1])
            raise
        begin = parameters["additional_parameters"].get("begin", "now")
        release = ("scontrol", "update", f"JobId={arrays[-1]}", f"StartTime={begin}")
        if ask(*release) is None:
            say(f"SLURM did not change the jobs' start time: they start in an hour, or after: {' '.join(release)}")
    say(f"Watch them with: squeue --job {','.join(arrays)}; the same command with --dry-run shows each run")
    say(f"Cancel them with: scancel {' '.join(arrays)}; launched again, they resume from their checkpoints")
    return arrays


def _submit_array(
    jobs: Sequence[SlurmRun], folder: Path, parameters: Mapping[str, Any], *, number_before: int
) -> list[str]:
    """Submit an array; return the numbers of its jobs."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    # -P: as in the executor for this machine
    executor = SlurmExecutor(folder, max_num_timeout=TIMEOUTS, python=f"{shlex.quote(sys.executable)} -P")
    executor.update_parameters(**parameters, job_name=f"beyondpixel-{folder.name}")
    try:
        with _outside_allocation(), executor.batch():
            submitted = [executor.submit(job) for job in jobs]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        before = f"the {number_before} runs before are submitted, and the same command submits the others later"
        left = before if number_before else "nothing was started"
        raise UserError(f"SLURM refused a job of {len(jobs)} runs: {str(error).strip()}; {left}") from error
    return [job.job_id for job in submitted]


def _hand_over(run: Run, action: Action, *, job: str, log: Path, keep: str) -> str:
    """Prepare a run for its job, or cancel the job if another process has the run; return a status message."""
    try:
        take(run, action, keep=keep, job=job, job_log=str(log))
    except HeldError as error:
        ask("scancel", job)
        return f"{run.name} is left alone: {error}"
    return f"{run.name} is SLURM job {job}, log: {run.folder.log_file}"


@contextmanager
def _outside_allocation() -> Iterator[None]:
    """Hide this process's allocation from sbatch, which passes the environment on to the job."""
    own, clean = dict(os.environ), environment_outside_allocation()
    os.environ.clear()
    os.environ.update(clean)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(own)
