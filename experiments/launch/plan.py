"""What to do with each cell, from what lies in its run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.cells import Cell, expand
from beyondpixel.experiments.launch.checks import check_output, check_parts, check_space
from beyondpixel.experiments.launch.lock import holder_of
from beyondpixel.experiments.launch.queue import living_jobs
from beyondpixel.experiments.run_folder import FINISHED
from beyondpixel.experiments.starting import checkpoint_to_resume, differences

Kind = Literal["done", "failed", "running", "queued", "starts", "resumes", "replaces"]
# what a launch does; the others are left alone
WORK: tuple[Kind, ...] = ("starts", "resumes", "replaces")


@dataclass(frozen=True)
class Situation:
    """Where a cell is, before a launch.

    Attributes:
        kind: "done", "failed" (in an earlier launch), "running" or "queued" (somewhere), or what is to be done:
            "starts" from nothing, "resumes" from a checkpoint, "replaces" an earlier run.
        note: more about it, for the reader.
    """

    kind: Kind
    note: str = ""

    @property
    def is_work(self) -> bool:
        """Whether the launch does this cell."""
        return self.kind in WORK

    def __str__(self) -> str:
        return f"{self.kind}{': ' if self.kind == 'failed' else ' '}{self.note}".strip()


def situation_of(
    cell: Cell, *, overwrite: bool = False, retry_failed: bool = False, jobs: Mapping[str, str] | None = None
) -> Situation:
    """Where a cell is.

    Args:
        cell: the cell.
        overwrite: whether a run that is there is to be replaced.
        retry_failed: whether a failed run is to be done again.
        jobs: the states of this user's SLURM jobs, by number.

    Raises:
        UserError: if a run of another config lies in its folder.
    """
    folder, state = cell.folder, cell.folder.state
    status, job = state["status"], str(state.get("job"))
    holder = holder_of(folder.lock_file)
    if holder is not None:
        return Situation("running", f"({holder})")
    if jobs and job in jobs:
        return Situation("queued", f"(SLURM job {job}, {jobs[job].lower()})")
    if overwrite and status != "new":
        return Situation("replaces", f"a run that was {status}")
    if status in FINISHED:
        _refuse_another_config(cell)
        return Situation("done", "and kept") if status == "done" else Situation("resumes", "with its test")
    if status == "failed" and not retry_failed:
        return Situation("failed", state.get("error") or "")
    resumes = checkpoint_to_resume(folder, cell.config) is not None
    return Situation("resumes", f"at step {state.get('step', 0)}") if resumes else Situation("starts")


@dataclass(frozen=True)
class Plan:
    """All cells of a launch with their situations.

    Attributes:
        cells: row by row.
        situations: one a cell.
    """

    cells: Sequence[Cell]
    situations: Sequence[Situation]

    @property
    def work(self) -> list[Cell]:
        """The cells that the launch does."""
        return [cell for cell, situation in self if situation.is_work]

    def of_kind(self, kind: Kind) -> list[Cell]:
        """The cells in a situation."""
        return [cell for cell, situation in self if situation.kind == kind]

    def __iter__(self) -> Any:
        return iter(zip(self.cells, self.situations, strict=True))


def make_plan(
    places: Sequence[str | Path],
    *,
    seeds: Sequence[int],
    output: Path,
    overrides: Mapping[str, Any],
    overwrite: bool = False,
    retry_failed: bool = False,
    checks: Sequence[Callable[[list[str]], None]] = (),
) -> Plan:
    """Every cell with what is to be done, everything checked.

    Args:
        places: as for `find_specs`.
        seeds: of each row.
        output: the folder that holds the tables' folders.
        overrides: dotted config keys that win over every spec.
        overwrite: replace runs that are there.
        retry_failed: do failed runs again.
        checks: of the executor; each takes the list of mistakes and adds to it.

    Raises:
        UserError: listing all mistakes of all specs, so that nothing starts before everything is right.
    """
    mistakes: list[str] = []
    cells = expand(places, seeds=seeds, output=output, overrides=overrides, mistakes=mistakes)
    jobs = living_jobs() if any("job" in cell.folder.state for cell in cells) else {}
    kept: list[Cell] = []
    situations: list[Situation] = []
    for cell in cells:
        try:
            situation = situation_of(cell, overwrite=overwrite, retry_failed=retry_failed, jobs=jobs)
        except UserError as error:
            mistakes.append(str(error))
            continue
        kept.append(cell)
        situations.append(situation)
    plan = Plan(kept, situations)
    sizes = check_parts(plan.work, mistakes, anew=overwrite)
    if check_output(output, mistakes):
        check_space(plan.work, sizes, output, mistakes)
    for check in checks:
        check(mistakes)
    if mistakes:
        raise UserError("nothing was started:\n" + "\n".join(dict.fromkeys(mistakes)))
    return plan


def _refuse_another_config(cell: Cell) -> None:
    changed = differences(cell.folder.config, cell.config)
    if changed:
        raise UserError(
            f"{cell.folder.path} holds a finished run of another config ({'; '.join(changed[:5])}), which is kept; "
            "add --overwrite to replace it, or choose another --output"
        )
