"""Executor for this machine: each run in its own process, one per GPU, or several on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from beyondpixel.datamodules.loading import available_cores
from beyondpixel.experiments.disk_space import describe_failed_write
from beyondpixel.experiments.errors import STOPPED, UserError
from beyondpixel.experiments.job import HELD
from beyondpixel.experiments.launch.actions import Action, take
from beyondpixel.experiments.launch.lock import HeldError
from beyondpixel.experiments.launch.progress import Progress
from beyondpixel.experiments.launch.queue import environment_outside_allocation
from beyondpixel.experiments.plan import Run
from beyondpixel.experiments.run.folder import DamagedRunError, Status
from beyondpixel.experiments.run.processes import KILLS, kill_with_children

POLL_INTERVAL_S = 0.5
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # a Trainer uses the GPUs that it sees
# -P: a file in the current folder, say queue.py, must not shadow a module of the same name
COMMAND = (sys.executable, "-P", "-m", "beyondpixel.experiments.job")

Slot = Mapping[str, str]
_Running = dict[subprocess.Popen[bytes], tuple[Run, Slot]]


def make_slots(jobs: int | None = None, gpus: int | None = None, *, devices: Sequence[str] | None = None) -> list[Slot]:
    """Make a slot for each concurrent run on this machine: environment variables that assign its devices.

    Args:
        jobs: concurrent runs; None is one per group of GPUs, and one on a machine without GPUs.
        gpus: GPUs of one run; None is one if the machine has any, 0 uses none.
        devices: this machine's GPUs, as for CUDA_VISIBLE_DEVICES; None detects them.

    Raises:
        UserError: if a run needs more GPUs than there are.

    Example:
        >>> make_slots(gpus=2, devices=["0", "1", "2", "3"])
        [{'CUDA_VISIBLE_DEVICES': '0,1'}, {'CUDA_VISIBLE_DEVICES': '2,3'}]
        >>> make_slots(devices=[])
        [{}]
    """
    found = [] if gpus == 0 else list(_visible_devices() if devices is None else devices)
    size = gpus or 1
    if size > max(1, len(found)):
        raise UserError(f"--gpus {gpus}: this machine has {len(found)}; give as many or fewer, or 0 to run on the CPU")
    if not found:
        return _cpu_slots(jobs or 1, NO_GPU if gpus == 0 else {})
    groups = [",".join(found[first : first + size]) for first in range(0, len(found) - size + 1, size)]
    # more jobs than groups share GPUs, which pays off for small models
    return [{"CUDA_VISIBLE_DEVICES": groups[index % len(groups)]} for index in range(jobs or len(groups))]


def _cpu_slots(number: int, devices: Slot) -> list[Slot]:
    if number == 1:
        return [devices]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, available_cores() // number)))
    return [{"OMP_NUM_THREADS": threads, **devices}] * number


def run_locally(
    work: Sequence[tuple[Run, Action]], slots: Sequence[Slot], progress: Progress, *, keep: str = "resume"
) -> None:
    """Execute runs, as many concurrently as there are slots.

    Each process has its own session: Ctrl-C reaches this process alone, which asks each run to save and stop. Runs
    continue if this process is killed; the next launch finds them by their locks.

    Raises:
        KeyboardInterrupt: after Ctrl-C (or one of `KILLS`), once all runs have stopped.
    """
    running: _Running = {}
    with _stopping_signals():
        try:
            _execute(list(reversed(work)), list(reversed(slots)), running, progress, keep)
        except KeyboardInterrupt:
            _stop(running, progress)
            raise


@contextmanager
def _stopping_signals() -> Iterator[None]:
    """Convert stop signals to KeyboardInterrupt; ignored ones, as under nohup, stay ignored."""
    former = {number: signal.getsignal(number) for number in KILLS}
    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _execute(
    waiting: list[tuple[Run, Action]], free: list[Slot], running: _Running, progress: Progress, keep: str
) -> None:
    while waiting or running:
        while waiting and free:
            run, action = waiting.pop()
            process = _start(run, action, free[-1], progress, keep)
            if process is not None:
                running[process] = run, free.pop()
        time.sleep(POLL_INTERVAL_S)
        for process in [one for one in running if one.poll() is not None]:
            run, slot = running.pop(process)
            free.append(slot)
            progress.ended(run, *_outcome(run, process.returncode))
        progress.refresh()


def _start(run: Run, action: Action, slot: Slot, progress: Progress, keep: str) -> subprocess.Popen[bytes] | None:
    """Start the process of a run; None if another process has the run, or its folder cannot be written."""
    try:
        take(run, action, keep=keep)
        with run.folder.log_file.open("ab") as log:
            process = subprocess.Popen(
                [*COMMAND, str(run.folder.path)],
                env={**environment_outside_allocation(), **slot},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except HeldError as error:  # another launcher was faster
        progress.ended(run, Status.RUNNING, str(error))
        return None
    except OSError as error:
        progress.ended(run, Status.FAILED, _record(run, Status.FAILED, describe_failed_write(error, run.folder.path)))
        return None
    progress.started(run, f"process {process.pid}")
    return process


def _outcome(run: Run, code: int) -> tuple[Status, str]:
    """Status and note of a run that ended, also recorded in its folder, if that can be written."""
    known = {0: (Status.DONE, ""), HELD: (Status.RUNNING, "another process has it"), STOPPED: (Status.STOPPED, "")}
    if code in known:
        return known[code]
    try:
        state = run.folder.state
    except DamagedRunError as error:
        return Status.DAMAGED, str(error)
    if Status(state["status"]).has_failed(state.get("error")):
        # also if Lightning then killed it because another process of the run had failed
        return Status.FAILED, state.get("error") or ""
    if code < 0:  # killed: not a failure of the run, and the next launch resumes it
        note = f"killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
        if not Status(state["status"]).is_finished:
            _record(run, Status.STOPPED, note)
        return Status.STOPPED, note
    # it ended before it could record the error, or could not write it
    lines = run.folder.log_file.read_text(encoding="utf-8", errors="replace").split("\n")
    last_line = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return Status.FAILED, _record(run, Status.FAILED, f"ended with code {code}: {last_line}")


def _record(run: Run, status: Status, error: str) -> str:
    """Record how a run ended; first remove temporary files of killed writes, which may free the space for it."""
    with suppress(OSError):
        run.folder.remove_temporary_files()
        run.folder.update_state(status=status, error=error)
    return error


def _stop(running: _Running, progress: Progress) -> None:
    """Ask every run to save and stop, and wait for it; a second Ctrl-C kills them."""
    progress.say(f"stopping {len(running)} runs, each with a checkpoint; press Ctrl-C again to kill them")
    for process in running:
        if hasattr(os, "setsid"):  # without sessions, as on Windows, Ctrl-C has already reached it
            process.send_signal(signal.SIGINT)
    try:
        for process, (run, _) in running.items():
            progress.ended(run, *_outcome(run, process.wait()))
    except KeyboardInterrupt:
        for process in running:
            kill_with_children(process)
        raise


def _visible_devices() -> list[str]:
    import torch

    count = torch.cuda.device_count()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = [str(index) for index in range(count)] if chosen is None else chosen.split(",")
    return [device.strip() for device in named if device.strip()][:count]
