"""Where a cell is before a launch, from what lies in its run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.cells import Cell
from beyondpixel.experiments.launch.evaluations import (
    launch_name,
    other_settings,
    refuse_source,
    tested_another_training,
)
from beyondpixel.experiments.launch.lock import holder_of
from beyondpixel.experiments.run_folder import FINISHED, RunFolder
from beyondpixel.experiments.starting import checkpoint_to_resume, differences

Kind = Literal["done", "failed", "running", "queued", "waits", "left out", "starts", "resumes", "replaces"]
# what a launch does; the others are left alone
WORK: tuple[Kind, ...] = ("starts", "resumes", "replaces")


@dataclass(frozen=True)
class Situation:
    """Where a cell is, before a launch.

    Attributes:
        kind: "done", "failed" (in an earlier launch), "running" or "queued" (somewhere), or what is to be done:
            "starts" from nothing, "resumes" from a checkpoint, "replaces" an earlier run. An evaluation "waits" for a
            source that is running or queued somewhere, and is "left out" if its source has failed.
        note: more about it, for the reader.
    """

    kind: Kind
    note: str = ""

    @property
    def is_work(self) -> bool:
        """Whether the launch does this cell."""
        return self.kind in WORK

    def __str__(self) -> str:
        return f"{self.kind}{': ' if self.kind in ('failed', 'left out') else ' '}{self.note}".strip()


def situation_of(
    cell: Cell,
    *,
    overwrite: bool = False,
    retry_failed: bool = False,
    jobs: Mapping[str, str] | None = None,
    source: Situation | None = None,
) -> Situation:
    """Where a cell is.

    Args:
        cell: the cell.
        overwrite: whether a run that is there is to be replaced.
        retry_failed: whether a failed run is to be done again.
        jobs: the states of this user's SLURM jobs, by number.
        source: of an evaluation whose source is part of the launch: where that is.

    Raises:
        UserError: if a run of another config lies in its folder, or an evaluation has no source to test.
    """
    folder, state = cell.folder, cell.folder.state
    status = state["status"]
    at_work = _at_work(folder, jobs)
    if at_work is not None:
        return at_work
    if status == "failed" and not retry_failed and not overwrite:
        return Situation("failed", state.get("error") or "")
    if cell.source is not None:
        return _of_evaluation(cell, overwrite, source or _at_work(cell.source, jobs), in_launch=source is not None)
    if overwrite and status != "new":
        return Situation("replaces", f"a run that was {status}")
    if status in FINISHED:
        _refuse_another_config(cell)
        return Situation("done", "and kept") if status == "done" else Situation("resumes", "with its test")
    resumes = checkpoint_to_resume(folder, cell.config) is not None
    # its last checkpoint may be of an earlier step, if it was killed
    return Situation("resumes", f"(had reached step {state.get('step', 0)})") if resumes else Situation("starts")


def _at_work(folder: RunFolder, jobs: Mapping[str, str] | None) -> Situation | None:
    """Whether a process or a SLURM job has a run."""
    job = str(folder.state.get("job"))
    holder = holder_of(folder.lock_file)
    if holder is not None:
        return Situation("running", f"({holder})")
    if jobs and job in jobs:
        return Situation("queued", f"(SLURM job {job}, {jobs[job].lower()})")
    return None


def _of_evaluation(cell: Cell, overwrite: bool, source: Situation | None, *, in_launch: bool) -> Situation:
    assert cell.source is not None
    status = cell.folder.state["status"]
    # a source that lacks its test alone keeps its checkpoint
    changes = source is not None and source.kind != "done" and cell.source.state["status"] != "trained"
    replaces = "an evaluation of an earlier training"
    if status == "done" and not overwrite and not changes:
        if not tested_another_training(cell):
            _refuse_other_settings(cell)
            return Situation("done", "and kept")
    elif overwrite and status != "new":
        replaces = f"an evaluation that was {status}"
    if source is not None and source.kind in ("running", "queued"):
        return Situation("waits", f"for {cell.source_name}, which is {source}")
    if source is not None and source.kind == "failed":
        return Situation("left out", f"{cell.source_name}, which it tests, failed in an earlier launch")
    if source is None or not source.is_work:
        refuse_source(cell)
    after = f"after {cell.source_name}" if in_launch and source is not None and source.is_work else ""
    if status == "done" or (overwrite and status != "new"):
        return Situation("replaces", ", ".join(filter(None, [replaces, after])))
    return Situation("starts", after)


def _refuse_another_config(cell: Cell) -> None:
    changed = differences(cell.folder.config, cell.config)
    if changed:
        raise UserError(
            f"{cell.folder.path} holds a finished run of another config ({'; '.join(changed[:5])}), which is kept; "
            "add --overwrite to replace it, or choose another --output"
        )


def _refuse_other_settings(cell: Cell) -> None:
    changed = other_settings(cell)
    if changed:
        # of this row alone: the run that it tests would be trained anew as well
        again = f"beyondpixel launch {launch_name(cell.spec)} --seeds {cell.seed} --overwrite"
        raise UserError(
            f"{cell.folder.path} holds a finished evaluation with other settings ({'; '.join(changed[:5])}), which is "
            f"kept; to replace it alone: {again}, or choose another --output"
        )
