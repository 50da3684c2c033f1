"""Progress of local runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from beyondpixel.experiments.plan import Run
from beyondpixel.experiments.run.folder import DamagedRunError
from beyondpixel.experiments.run.status import Status

SECONDS_BETWEEN_LINES = 60.0
# of a long launch the table shows the runs that go on, those that went wrong, and this many before and after
SHOWN_NEIGHBORS = 5
COLORS = {Status.DONE: "green", Status.FAILED: "red", Status.DAMAGED: "red", Status.RUNNING: "bold"}


@dataclass
class _Entry:
    run: Run
    status: Status = Status.NEW
    note: str = ""
    ended: bool = False
    began: tuple[float, int] | None = None  # when it was first seen to make steps, and at which step

    def facts(self, now: float) -> tuple[str, str, str]:
        """Step of how many, the last mIoU in percent, and the time left; empty where nothing is known yet."""
        try:
            state, summary = self.run.folder.state, self.run.folder.summary
        except (DamagedRunError, OSError):
            return "", "", ""
        value = summary.get("test/mIoU", summary.get("val/mIoU"))
        score = "" if value is None else f"{100 * value:.1f}"
        step, last = state.get("step"), state.get("max_steps")
        if self.ended or not step or not last:
            return "", score, ""
        if state["status"] == Status.TRAINED:
            return f"{step}/{last}", score, "testing"
        self.began = self.began or (now, step)
        since, first = self.began
        left = duration((last - step) * (now - since) / (step - first)) if step > first else ""
        return f"{step}/{last}", score, left


class Progress:
    """Show the runs of a launch; to be entered while they go on.

    Args:
        runs: those that are to be done.
        console: where; a table is drawn if it is a terminal, otherwise a line is printed when something happens and
            once a minute for each run that goes on.
    """

    def __init__(self, runs: Sequence[Run], console: Console) -> None:
        self.console = console
        self._entries = {run.name: _Entry(run) for run in runs}
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._last_lines = time.monotonic()

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)
            self._live.stop()

    def names(self, *statuses: Status) -> list[str]:
        """The runs that have ended so."""
        return [name for name, entry in self._entries.items() if entry.ended and entry.status in statuses]

    def started(self, run: Run, note: str) -> None:
        """A run has begun."""
        self._set(run, Status.RUNNING, note, ended=False)
        self._line(f"{run.name}: {Status.RUNNING}, {note}, log: {run.folder.log_file}")

    def ended(self, run: Run, status: Status, note: str) -> None:
        """This launch has no more to do with a run."""
        self._set(run, status, note, ended=True)
        score = self._entries[run.name].facts(0.0)[1] if status is Status.DONE else ""
        log = f"its log: {run.folder.log_file}" if status is Status.FAILED else ""
        self._line(f"{run.name}: {'; '.join(filter(None, [status, score and f'mIoU {score} %', note, log]))}")

    def say(self, text: str) -> None:
        """A line for the user, above the table."""
        self.console.print(text, markup=False, highlight=False)

    def refresh(self) -> None:
        """Show how far the runs are."""
        now = time.monotonic()
        if self._live:
            self._live.update(self.table(), refresh=True)
        elif now - self._last_lines > SECONDS_BETWEEN_LINES:
            self._last_lines = now
            for entry in self._going_on():
                step, score, left = entry.facts(now)
                facts = [f"step {step}" if step else "starting", f"mIoU {score} %" if score else "", left]
                self._line(f"{entry.run.name}: {', '.join(filter(None, facts))}")

    def table(self) -> Table:
        """The runs as they are now."""
        counts = Counter(entry.status for entry in self._entries.values())
        title = ", ".join(f"{counts[status]} {status}" for status in Status if counts[status])
        table = Table("run", "status", "step", "mIoU %", "left", "note", title=title)
        now = time.monotonic()
        for entry in self._shown():
            color = COLORS.get(entry.status, "dim" if entry.status is Status.NEW else "yellow")
            status = f"[{color}]{entry.status}[/{color}]"
            table.add_row(escape(entry.run.name), status, *entry.facts(now), escape(entry.note))
        return table

    def _set(self, run: Run, status: Status, note: str, *, ended: bool) -> None:
        entry = self._entries[run.name]
        entry.status, entry.note, entry.ended = status, note, ended

    def _going_on(self) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.status is Status.RUNNING and not entry.ended]

    def _shown(self) -> list[_Entry]:
        entries = list(self._entries.values())
        done = [entry for entry in entries if entry.status is Status.DONE]
        waiting = [entry for entry in entries if entry.status is Status.NEW]
        hidden = {entry.run.name for entry in (*done[:-SHOWN_NEIGHBORS], *waiting[SHOWN_NEIGHBORS:])}
        return [entry for entry in entries if entry.run.name not in hidden]

    def _line(self, text: str) -> None:
        if not self._live:
            self.say(text)


def duration(seconds: float) -> str:
    """Seconds for a reader.

    Example:
        >>> duration(42), duration(170), duration(7300)
        ('42 s', '3 min', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
