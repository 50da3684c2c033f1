"""Peak memory of a workload, as reported by the operating system."""

import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS = Path("/proc/self/status")
# makes a workload from a size; a top-level function of a script, since a new process imports it
Prepare = Callable[..., Callable[[], object]]


def can_measure() -> bool:
    """Return whether this system has Linux's /proc, which is required."""
    return STATUS.exists()


def peak_bytes(prepare: Prepare, tiny: tuple[Any, ...], real: tuple[Any, ...], threads: int) -> int:
    """Measure the growth of a new process, which does nothing else, during a workload.

    Args:
        prepare: makes the inputs, and returns the workload on them.
        tiny: its arguments for a workload that only loads libraries and starts threads, run first.
        real: its arguments for the measured workload.
        threads: number of PyTorch's threads.
    """
    # a new process for each, so that no memory freed by another is reused
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (prepare, tiny, real, threads))


def _measure(prepare: Prepare, tiny: tuple[Any, ...], real: tuple[Any, ...], threads: int) -> int:
    torch.set_num_threads(threads)
    prepare(*tiny)()
    work = prepare(*real)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current size
    before = _kilobytes("VmRSS")
    work()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(field: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field))
