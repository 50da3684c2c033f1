"""Choose the launch action of each run from the state of its folder and SLURM's queue."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.evaluate_run import missing_evaluations
from beyondpixel.experiments.launch.lock import HeldError, RunLock, holder_of
from beyondpixel.experiments.launch.queue import Queue
from beyondpixel.experiments.plan import Run
from beyondpixel.experiments.run.folder import DamagedRunError, RunFolder, Status

Kind = Literal["keep", "leave", "failed", "damaged", "start", "resume", "replace"]
WORK: tuple[Kind, ...] = ("start", "resume", "replace")
# runs that failed with one of these are resumed by the same command, once there is space
DISK_FULL = re.compile(r"disk full|No space left on device|Disk quota exceeded", re.IGNORECASE)


@dataclass(frozen=True)
class Action:
    """Action of a launch for one run.

    Attributes:
        kind: `keep` a finished run, `leave` one that another process has, skip one that has `failed` or of which a file
            is `damaged`; or work: `start` from scratch, `resume` from a checkpoint, `replace` an earlier run.
        reason: explanation for the user.
        seen: the state that the choice is based on; None if it could not be read.
    """

    kind: Kind
    reason: str = ""
    seen: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def is_work(self) -> bool:
        """Whether the launch executes the run."""
        return self.kind in WORK

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}" if self.reason else self.kind


def choose_actions(runs: Sequence[Run], *, overwrite: bool = False, retry_failed: bool = False) -> list[Action]:
    """Choose an action for each run, with one query to SLURM for all.

    Raises:
        UserError: naming every folder that holds a run of another config.
    """
    queue = Queue()
    actions: list[Action] = []
    errors: list[str] = []
    for run in runs:
        try:
            actions.append(choose_action(run, queue, overwrite=overwrite, retry_failed=retry_failed))
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("\n".join(errors))
    return actions


def choose_action(run: Run, queue: Queue, *, overwrite: bool = False, retry_failed: bool = False) -> Action:
    """Choose the action for one run; arguments and errors as for `choose_actions`."""
    holder = holder_of(run.folder.lock_file)
    if holder is not None:
        return Action("leave", f"{Status.RUNNING}, {holder}")
    try:
        state, config = run.folder.state, run.folder.config
        _ = run.folder.record, run.folder.summary
    except DamagedRunError as error:
        seen = _state(run.folder)
        return Action("replace", f"a {Status.DAMAGED} run", seen) if overwrite else Action("damaged", str(error), seen)
    job = queue.living(state.get("job"))
    if job is not None:
        return Action("leave", f"{Status.QUEUED}, {job}", state)
    status, failure = _status(state, queue)
    if overwrite and status is not Status.NEW:
        return Action("replace", f"a run that was {status}", state)
    if status.has_failed(failure) and not retry_failed and not DISK_FULL.search(failure):
        return Action("failed", failure, state)
    return _continue(run, status, state, config)


def _continue(run: Run, status: Status, state: dict[str, Any], config: dict[str, Any]) -> Action:
    """Choose what is missing of a run that may continue: the training, its test, evaluations or nothing."""
    folder = run.folder
    run.check_config(status, config)
    if status is Status.DONE:
        missing = ", ".join(missing_evaluations(folder, run.spec.evaluations))
        if not missing:
            return Action("keep", status, state)
        if not folder.has_checkpoint:
            return Action("keep", f"{status}, but without {missing}: its checkpoint was not kept", state)
        return Action("resume", f"with {missing}", state)
    if status is Status.TRAINED:
        return Action("resume", "with its test", state)
    if folder.has_checkpoint:  # the last checkpoint may be of an earlier step, if the run was killed
        return Action("resume", f"a run that had reached step {state.get('step', 0)}", state)
    return Action("start", "", state)


def record_failures(plan: Sequence[tuple[Run, Action]]) -> list[str]:
    """Record failures that the runs could not record themselves; return a sentence per kind of skipped failed runs."""
    sentences = []
    for kind, what, remedy in (
        ("failed", "failed in an earlier launch", "--retry-failed repeats them"),
        ("damaged", "are damaged", "--overwrite replaces them"),
    ):
        skipped = [(run, action) for run, action in plan if action.kind == kind]
        if skipped:
            names = ", ".join(run.name for run, _ in skipped)
            sentences.append(f"{len(skipped)} runs {what} and were left alone: {names}; {remedy}")
    for run, action in plan:
        if action.kind == "failed" and action.seen and action.seen["status"] in (Status.QUEUED, Status.RUNNING):
            _record_failure(run, action)
    return sentences


def _record_failure(run: Run, action: Action) -> None:
    with suppress(HeldError), RunLock(run.folder.lock_file, patience=0):
        if _state(run.folder) == action.seen:
            run.folder.update_state(status=Status.FAILED, error=action.reason)


def take(run: Run, action: Action, *, keep: str = "resume", **state: Any) -> None:
    """Prepare a run's folder for the process that will do the run.

    Args:
        run, action: the run, and what is done with it.
        keep: what to keep of its checkpoint once it is done; stored in run.json.
        state: entries for the run's state, such as the job's number.

    Raises:
        HeldError: if another process has the run, or has changed its state since the action was chosen.
    """
    folder = run.folder
    with RunLock(folder.lock_file):
        now = _state(folder)
        if now != action.seen:
            raise HeldError(folder.path)
        if action.kind == "replace":
            folder.clear()
        run.prepare(keep=keep)
        former = now or {}
        finished = action.kind == "resume" and Status(former["status"]).is_finished
        status = Status.TRAINED if finished else Status.QUEUED
        cleared = dict.fromkeys(former.keys() & {"job", "job_log", "error"})  # from an earlier launch
        folder.update_state(**{"status": status, **cleared, **state})


def _state(folder: RunFolder) -> dict[str, Any] | None:
    try:
        return folder.state
    except DamagedRunError:
        return None


def _status(state: dict[str, Any], queue: Queue) -> tuple[Status, str]:
    """Status and error of a run; a job that is gone could not record its own failure."""
    status = Status(state["status"])
    if state.get("job") and status in (Status.QUEUED, Status.RUNNING):
        death = queue.death_of(state["job"], Path(state.get("job_log") or ""), began=status is Status.RUNNING)
        if death is not None:
            return Status.FAILED, death
    return status, state.get("error") or ""
