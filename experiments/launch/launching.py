"""`beyondpixel launch`: check everything, show the plan, hand the cells to an executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.cells import Cell
from beyondpixel.experiments.launch.local import make_slots, run_locally
from beyondpixel.experiments.launch.plan import Plan, make_plan
from beyondpixel.experiments.launch.resources import Resources
from beyondpixel.experiments.launch.slurm import check_slurm, submit
from beyondpixel.experiments.launch.view import View


def launch(
    places: Sequence[str | Path],
    *,
    seeds: Sequence[int],
    output: Path,
    overrides: Mapping[str, Any],
    overwrite: bool = False,
    retry_failed: bool = False,
    dry_run: bool = False,
    jobs: int | None = None,
    gpus: int | None = None,
    slurm: Resources | None = None,
) -> list[Cell]:
    """Train and test every cell that is not done yet; those that only evaluate when their source is done.

    Args:
        places: spec files, folders or names of tables.
        seeds: of each row.
        output: the folder that holds the tables' folders.
        overrides: dotted config keys that win over every spec.
        overwrite: replace runs that are there instead of keeping or resuming them.
        retry_failed: do failed runs again; otherwise they are left alone.
        dry_run: check everything and show what would run.
        jobs: how many cells at a time on this machine.
        gpus: GPUs of one cell on this machine.
        slurm: submit the cells to SLURM with these resources instead of running them here.

    Returns:
        All cells, done ones included.

    Raises:
        UserError: if a spec is wrong, if a finished run was made with another config, if an evaluation has no source
            to test, or, after all others have run, if a cell failed.
    """
    console = Console()
    devices = slurm.devices() if slurm else {"trainer.devices": gpus} if (gpus or 1) > 1 else {}
    with console.status("Checking the specs ..."):
        plan = make_plan(
            places,
            seeds=seeds,
            output=output,
            overrides={**devices, **overrides},
            overwrite=overwrite,
            retry_failed=retry_failed,
            checks=[partial(check_slurm, slurm)] if slurm else [],
        )
    slots = [] if slurm else make_slots(jobs, gpus or 1)
    console.print(overview(plan))
    if dry_run:
        return list(plan.cells)
    work, waiting = plan.work, plan.of_kind("waits")
    if slurm:  # which can let them wait for each other's jobs
        submit([*work, *waiting], slurm, output=output, overwrite=overwrite, say=_printer(console))
    elif work:
        _run_here(work, slots, console, overwrite=overwrite)
    if waiting and not slurm:
        names = ", ".join(cell.name for cell in waiting)
        console.print(f"Left out until the runs that they test are done elsewhere: {names}; then launch again")
    left = plan.of_kind("failed")
    if left:
        names = ", ".join(cell.name for cell in left)
        raise UserError(
            f"{len(left)} runs failed in an earlier launch and were left alone: {names}; --retry-failed does them again"
        )
    return list(plan.cells)


def overview(plan: Plan) -> Table:
    """Every cell and what is to be done with it."""
    table = Table("run", "seed", "state", "folder", title=f"{len(plan.work)} of {len(plan.cells)} runs to do")
    for cell, situation in plan:
        table.add_row(cell.spec.name, str(cell.seed), escape(str(situation)), str(cell.folder.path))
    return table


def _run_here(work: Sequence[Cell], slots: Sequence[Any], console: Console, *, overwrite: bool) -> None:
    view = View(work, console)
    try:
        with view:
            run_locally(work, slots, view, overwrite=overwrite)
    except KeyboardInterrupt:
        view.say("Stopped. The same command goes on from the checkpoints.")
        raise
    omitted = ", ".join(cell.name for cell in view.of("left out"))
    left_out = f" (left out for that: {omitted})" if omitted else ""
    failed = view.of("failed")
    if failed:
        names = ", ".join(cell.name for cell in failed)
        raise UserError(
            f"{len(failed)} of {len(work)} runs failed: {names}{left_out}; see their log.txt, mend the cause, "
            "and launch again with --retry-failed"
        )
    stopped = view.of("stopped")
    if stopped:
        names = ", ".join(cell.name for cell in stopped)
        raise UserError(
            f"{len(stopped)} of {len(work)} runs were stopped: {names}{left_out}; the same command resumes them"
        )


def _printer(console: Console) -> Any:
    return lambda text: console.print(text, markup=False, highlight=False)
