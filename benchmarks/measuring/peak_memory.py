"""The memory that a piece of work takes at its highest, as the operating system counts it."""

import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS = Path("/proc/self/status")
# makes a piece of work from a size; a function at the top of a script, since a new process imports it
Prepare = Callable[..., Callable[[], object]]


def can_measure() -> bool:
    """Whether this system has what is needed, Linux's /proc."""
    return STATUS.exists()


def peak_bytes(prepare: Prepare, tiny: tuple[Any, ...], real: tuple[Any, ...], threads: int) -> int:
    """How far a new process, which does nothing else, grows during its first piece of work.

    Args:
        prepare: makes the inputs, and returns the work on them.
        tiny: its arguments for a piece that only loads libraries and starts threads, done first.
        real: its arguments for the piece that is measured.
        threads: of PyTorch.
    """
    # a process for each, so that nothing freed by another is used again
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (prepare, tiny, real, threads))


def _measure(prepare: Prepare, tiny: tuple[Any, ...], real: tuple[Any, ...], threads: int) -> int:
    torch.set_num_threads(threads)
    prepare(*tiny)()
    work = prepare(*real)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest size so far becomes the size now
    before = _kilobytes("VmRSS")
    work()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(field: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field))
