"""Run cells on this machine, each in a process of its own: one a GPU, or several on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.cell import HELD, STOPPED
from beyondpixel.experiments.launch.cells import Cell
from beyondpixel.experiments.launch.evaluations import has_result
from beyondpixel.experiments.launch.lock import HeldError, RunLock
from beyondpixel.experiments.launch.view import Outcome, View
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.experiments.starting import start_over

SECONDS_BETWEEN_LOOKS = 0.5
COMMAND = (sys.executable, "-m", "beyondpixel.experiments.launch.cell")


@dataclass(frozen=True)
class Slot:
    """A place where one cell runs at a time.

    Attributes:
        devices: the GPUs it may see, as for CUDA_VISIBLE_DEVICES; empty on a machine without.
        threads: CPU threads; None leaves that to torch.
    """

    devices: tuple[str, ...] = ()
    threads: int | None = None

    def environment(self) -> dict[str, str]:
        """This process's, for a cell in this slot."""
        environment = dict(os.environ)
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.devices)
        if self.threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        return environment


def make_slots(jobs: int | None = None, gpus: int = 1, *, devices: Sequence[str] | None = None) -> list[Slot]:
    """The places for cells on this machine.

    Args:
        jobs: how many cells at a time; None is one for each group of GPUs, and one on a machine without GPUs.
        gpus: GPUs of one cell.
        devices: this machine's GPUs, as for CUDA_VISIBLE_DEVICES; None finds out.

    Raises:
        UserError: if a cell is to have more GPUs than there are.

    Example:
        >>> [slot.devices for slot in make_slots(gpus=2, devices=["0", "1", "2", "3"])]
        [('0', '1'), ('2', '3')]
        >>> make_slots(jobs=2, devices=[])[0].devices
        ()
    """
    found = list(_visible_devices() if devices is None else devices)
    if not found:
        if gpus > 1:
            raise UserError(f"--gpus {gpus}: this machine has no GPU; leave --gpus away to run on the CPU")
        number = jobs or 1
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        return [Slot(threads=max(1, cores // number) if number > 1 else None) for _ in range(number)]
    size = max(1, gpus)
    if size > len(found):
        raise UserError(f"--gpus {gpus}: this machine has {len(found)}; give {len(found)} or fewer")
    groups = [tuple(found[first : first + size]) for first in range(0, len(found) - size + 1, size)]
    # more jobs than groups share GPUs, which pays for small models
    return [Slot(groups[index % len(groups)]) for index in range(jobs or len(groups))]


def run_locally(cells: Sequence[Cell], slots: Sequence[Slot], view: View, *, overwrite: bool = False) -> None:
    """Train and test cells, as many at a time as there are slots; evaluations when their sources are done.

    The cells' processes are in sessions of their own: Ctrl-C reaches this process alone, which asks each of them to
    save and stop. They go on if this process is killed; the next launch finds them by their locks.

    Args:
        cells: what to run.
        slots: from `make_slots`.
        view: is told what happens, and shows it.
        overwrite: remove what an earlier run left, right before the new one starts.

    Raises:
        KeyboardInterrupt: when Ctrl-C has been pressed (or SIGTERM has come) and all cells have stopped.
    """
    waiting = list(cells)
    free = list(reversed(slots))
    running: list[_Running] = []
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` is to do what Ctrl-C does
    try:
        while waiting or running:
            for cell in _ready(waiting, running):
                if cell.source is not None and cell.source.state["status"] != "done":
                    waiting.remove(cell)
                    view.ended(cell, "left out", f"{cell.source_name}, which it tests, {_how_it_ended(cell.source)}")
                    continue
                if not free:
                    break
                waiting.remove(cell)
                try:
                    running.append(_start(cell, free[-1], view, overwrite=overwrite))
                    free.pop()
                except HeldError as error:  # another launcher was quicker
                    view.ended(cell, "elsewhere", str(error))
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                free.append(one.slot)
                view.ended(one.cell, *_outcome(one))
            view.refresh()
    except KeyboardInterrupt:
        _stop(running, view)
        raise
    finally:
        signal.signal(signal.SIGTERM, former)


@dataclass
class _Running:
    cell: Cell
    slot: Slot
    process: subprocess.Popen[bytes]


def _ready(waiting: Iterable[Cell], running: Iterable[_Running]) -> list[Cell]:
    """Those that need not wait for another one's end."""
    unfinished = {cell.folder.path for cell in (*waiting, *(one.cell for one in running))}
    return [cell for cell in waiting if cell.source is None or cell.source.path not in unfinished]


def _how_it_ended(source: RunFolder) -> str:
    status = source.state["status"]
    return {"failed": "failed", "interrupted": "was stopped"}.get(status, f"is not done (it is {status})")


def _start(cell: Cell, slot: Slot, view: View, *, overwrite: bool) -> _Running:
    with RunLock(cell.folder.lock_file):
        # an evaluation resumes nothing; another launcher may have finished it meanwhile
        if overwrite or (cell.source is not None and not has_result(cell)):
            start_over(cell.folder)
        cell.prepare()
    with cell.folder.log_file.open("ab") as log:
        process = subprocess.Popen(
            [*COMMAND, str(cell.folder.path)],
            env=slot.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    view.started(cell, f"process {process.pid}")
    return _Running(cell, slot, process)


def _outcome(one: _Running) -> tuple[Outcome, str]:
    code, folder = one.process.returncode, one.cell.folder
    state = folder.state
    if code == 0:
        return "done", ""
    if code == HELD:
        return "elsewhere", "another process has it"
    if code == STOPPED:
        return "stopped", ""
    if code < 0:  # killed: it is no failure of the run, and the next launch resumes it
        name = signal.Signals(-code).name
        note = f"killed by {name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
        folder.update_state(status="interrupted", error=note)
        return "stopped", note
    if state["status"] != "failed":  # it ended before it could say why
        folder.update_state(status="failed", error=f"ended with code {code}: {_last_line(folder.log_file)}")
    return "failed", folder.state.get("error") or ""


def _stop(running: Sequence[_Running], view: View) -> None:
    """Ask every cell to save and stop, and wait for it; a second Ctrl-C ends them at once."""
    view.say(f"stopping {len(running)} runs, each with a checkpoint; press Ctrl-C again to kill them")
    for one in running:
        one.process.send_signal(signal.SIGINT)
    try:
        for one in running:
            one.process.wait()
            view.ended(one.cell, *_outcome(one))
    except KeyboardInterrupt:
        for one in running:
            if one.process.poll() is None:
                os.killpg(one.process.pid, signal.SIGKILL)
        raise


def _last_line(file: Path) -> str:
    lines = file.read_text(errors="replace").split("\n") if file.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _visible_devices() -> list[str]:
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if chosen is not None:
        return [device.strip() for device in chosen.split(",") if device.strip()][:count]
    return [str(index) for index in range(count)]
