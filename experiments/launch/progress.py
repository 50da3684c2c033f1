"""Progress of local runs: bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich import progress as rich_progress
from rich.console import Console

from beyondpixel.experiments.plan import Run
from beyondpixel.experiments.run.folder import DamagedRunError, RunFolder, Status

SECONDS_BETWEEN_LINES = 60.0
COLUMNS = (
    rich_progress.TextColumn("{task.description}", markup=False),
    rich_progress.BarColumn(),
    rich_progress.MofNCompleteColumn(),
    rich_progress.TextColumn("{task.fields[note]}", markup=False),
    rich_progress.TimeElapsedColumn(),
    rich_progress.TimeRemainingColumn(),
)


class Progress:
    """Show the runs of a launch; a context manager to enter while they run.

    Args:
        runs: those to execute.
        console: output; a terminal has one bar for all runs and one per active run, other output has one line per
            active run once a minute.
    """

    def __init__(self, runs: Sequence[Run], console: Console) -> None:
        self.console = console
        self.statuses = dict.fromkeys((run.name for run in runs), Status.NEW)
        self._active: dict[str, tuple[Run, rich_progress.TaskID]] = {}
        self._bars = rich_progress.Progress(*COLUMNS, console=console, disable=not console.is_terminal)
        self._all = self._bars.add_task("all runs", total=len(runs), note="")
        self._last_lines = time.monotonic()

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def names(self, *statuses: Status) -> list[str]:
        """Names of the runs that have one of these statuses, according to this launch."""
        return [name for name, status in self.statuses.items() if status in statuses]

    def started(self, run: Run, note: str) -> None:
        """Show that a run has started."""
        self.statuses[run.name] = Status.RUNNING
        self._active[run.name] = (run, self._bars.add_task(run.name, total=None, note=""))
        self.say(f"{run.name}: {Status.RUNNING}, {note}, log: {run.folder.log_file}")

    def ended(self, run: Run, status: Status, note: str) -> None:
        """Show the final status of a run in this launch."""
        self.statuses[run.name] = status
        if run.name in self._active:
            self._bars.remove_task(self._active.pop(run.name)[1])
        score = _state_of(run.folder)[2] if status is Status.DONE else ""
        log = f"its log: {run.folder.log_file}" if status is Status.FAILED else ""
        self.say(f"{run.name}: {'; '.join(filter(None, [status, score, note, log]))}")
        self._bars.advance(self._all)

    def say(self, text: str) -> None:
        """Print a line for the user, above the bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def refresh(self) -> None:
        """Update the display from the run folders."""
        counts = Counter(self.statuses.values())
        self._bars.update(self._all, note=", ".join(f"{counts[one]} {one}" for one in Status if counts[one]))
        say = not self.console.is_terminal and time.monotonic() - self._last_lines > SECONDS_BETWEEN_LINES
        self._last_lines = time.monotonic() if say else self._last_lines
        for run, bar in self._active.values():
            step, last, score = _state_of(run.folder)
            self._bars.update(bar, completed=step, total=last, note=score)
            if say:
                steps = f"step {step}/{last}" if step and last else "initializing"
                self.say(f"{run.name}: {', '.join(filter(None, [steps, score]))}")


def _state_of(folder: RunFolder) -> tuple[int, int | None, str]:
    """Step, number of steps and text of the last mIoU, if known."""
    try:
        state, summary = folder.state, folder.summary
    except (DamagedRunError, OSError):
        return 0, None, ""
    value = summary.get("test/mIoU", summary.get("val/mIoU"))
    return state.get("step") or 0, state.get("max_steps"), "" if value is None else f"mIoU {100 * value:.1f} %"
