"""Peak memory of a workload: of a CPU's process, as reported by the operating system, or of a GPU."""

import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS = Path("/proc/self/status")
# makes the inputs, and returns the workload on them; a top-level function of a script, since a new process imports it
Prepare = Callable[..., Callable[[], object]]


def can_measure(device: str) -> bool:
    """Return whether the peak can be measured; on a CPU this needs Linux's /proc."""
    return device == "cuda" or STATUS.exists()


def peak_bytes(prepare: Prepare, tiny: tuple[Any, ...], real: tuple[Any, ...], *, device: str) -> int:
    """Measure the peak above the inputs during a workload.

    Args:
        prepare: makes the inputs on the device, and returns the workload on them.
        tiny: its arguments for a workload that only loads libraries and starts threads, run first.
        real: its arguments for the measured workload.
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        prepare(*tiny)()
        work = prepare(*real)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    # a new process for each, so that no memory freed by another is reused
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_growth, (prepare, tiny, real, torch.get_num_threads()))


def _growth(prepare: Prepare, tiny: tuple[Any, ...], real: tuple[Any, ...], threads: int) -> int:
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
