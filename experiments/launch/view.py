"""What a launch shows while cells run: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from beyondpixel.experiments.launch.cells import Cell

Outcome = Literal["done", "failed", "stopped", "elsewhere", "left out"]
SECONDS_BETWEEN_LINES = 60.0
# of a long launch the table shows the cells that run, those that went wrong, and this many before and after
SHOWN_NEIGHBOURS = 5
COLOURS = {
    "done": "green",
    "failed": "red",
    "stopped": "yellow",
    "elsewhere": "yellow",
    "left out": "yellow",
    "runs": "bold",
}


@dataclass
class Progress:
    """How far a run is, from what it writes to its folder.

    Attributes:
        began: when it was first seen to make steps, and at which step; the rate is counted from there.
    """

    began: tuple[float, int] | None = None

    def describe(self, cell: Cell, now: float) -> tuple[str, str, str]:
        """Step of how many, last mIoU in percent, and time left; empty where nothing is known yet."""
        state = cell.folder.state
        step, last = state.get("step"), state.get("max_steps")
        if state["status"] not in ("running", "trained") or step is None or not last:
            return "", self.score(cell), ""
        if self.began is None:
            self.began = (now, step)
        since, first = self.began
        left = ""
        if step > first:
            left = duration((last - step) * (now - since) / (step - first))
        return f"{step}/{last}", self.score(cell), "testing" if state["status"] == "trained" else left

    @staticmethod
    def score(cell: Cell) -> str:
        """The test's mIoU in percent, or the last validation's."""
        summary = cell.folder.summary
        value = summary.get("test/mIoU", summary.get("val/mIoU"))
        return "" if value is None else f"{100 * value:.1f}"


@dataclass
class _Entry:
    cell: Cell
    state: str = "waits"
    note: str = ""
    progress: Progress = field(default_factory=Progress)


class View:
    """Shows the cells of a launch; to be entered while they run.

    Args:
        cells: those that are to run.
        console: where; a table is drawn if it is a terminal, otherwise a line is printed when something happens and
            once a minute for each running cell.
    """

    def __init__(self, cells: Sequence[Cell], console: Console) -> None:
        self.console = console
        self._entries = {cell.name: _Entry(cell, note=_awaited(cell, cells)) for cell in cells}
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._last_lines = time.monotonic()

    def __enter__(self) -> View:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)
            self._live.stop()

    def of(self, outcome: Outcome) -> list[Cell]:
        """The cells that have ended so."""
        return [entry.cell for entry in self._entries.values() if entry.state == outcome]

    def started(self, cell: Cell, where: str) -> None:
        """A cell has begun."""
        entry = self._entries[cell.name]
        entry.state, entry.note = "runs", where
        self._line(f"{cell.name} runs ({where}), log: {cell.folder.log_file}")

    def ended(self, cell: Cell, outcome: Outcome, note: str) -> None:
        """A cell has ended."""
        entry = self._entries[cell.name]
        entry.state, entry.note = outcome, note
        score = Progress.score(cell) if outcome == "done" else ""
        text = {"done": "is done", "elsewhere": "is left alone", "left out": "is left out"}.get(outcome, outcome)
        self._line(f"{cell.name} {text}{f', mIoU {score} %' if score else ''}{f': {note}' if note else ''}")
        if outcome == "failed":
            self._line(f"  its log: {cell.folder.log_file}")

    def say(self, text: str) -> None:
        """A line for the user, above the table."""
        self.console.print(text, markup=False, highlight=False)

    def refresh(self) -> None:
        """Show how far the cells are."""
        now = time.monotonic()
        if self._live:
            self._live.update(self.table(), refresh=True)
        elif now - self._last_lines > SECONDS_BETWEEN_LINES:
            self._last_lines = now
            for entry in self._entries.values():
                if entry.state == "runs":
                    step, score, left = entry.progress.describe(entry.cell, now)
                    facts = [f"step {step}" if step else "starting", f"mIoU {score} %" if score else "", left]
                    self._line(f"{entry.cell.name}: {', '.join(filter(None, facts))}")

    def table(self) -> Table:
        """The cells as they are now."""
        now = time.monotonic()
        counts = [
            f"{sum(entry.state == state for entry in self._entries.values())} {text}"
            for state, text in (("done", "done"), ("runs", "running"), ("waits", "waiting"), ("failed", "failed"))
        ]
        table = Table("run", "state", "step", "mIoU %", "left", "note", title=", ".join(counts))
        for entry in self._shown():
            step, score, left = entry.progress.describe(entry.cell, now)
            if entry.state != "runs":
                left = ""
            colour = COLOURS.get(entry.state, "dim")
            state = f"[{colour}]{entry.state}[/{colour}]"
            table.add_row(escape(entry.cell.name), state, step, score, left, escape(entry.note))
        return table

    def _shown(self) -> list[_Entry]:
        entries = list(self._entries.values())
        done = [entry for entry in entries if entry.state == "done"]
        waiting = [entry for entry in entries if entry.state == "waits"]
        hidden = {entry.cell.name for entry in (*done[:-SHOWN_NEIGHBOURS], *waiting[SHOWN_NEIGHBOURS:])}
        return [entry for entry in entries if entry.cell.name not in hidden]

    def _line(self, text: str) -> None:
        if not self._live:
            self.say(text)


def _awaited(cell: Cell, cells: Sequence[Cell]) -> str:
    awaited = cell.source is not None and any(other.folder.path == cell.source.path for other in cells)
    return f"for {cell.source_name}" if awaited else ""


def duration(seconds: float) -> str:
    """For a reader.

    Example:
        >>> duration(42), duration(170), duration(7300)
        ('42 s', '3 min', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
