"""Repeated timings of implementations, those of the tests included, and the record of a benchmark."""

import gc
import os
import platform
import runpy
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track

from beyondpixel.experiments.run.provenance import device_name, git_commit

CHECKOUT = Path(__file__).resolve().parents[2]
CONSOLE = Console(stderr=True)
Item = TypeVar("Item")


def load_from_tests(file: str) -> SimpleNamespace:
    """Execute a file below `tests/`, such as a reference implementation, and return what it defines."""
    return SimpleNamespace(**runpy.run_path(str(CHECKOUT / "tests" / file)))


def progress(items: Iterable[Item], what: str) -> Iterable[Item]:
    """Iterate over the items, with a progress bar on a terminal."""
    return track(list(items), what, console=CONSOLE)


def race(
    steps: dict[str, Callable[[], object]], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, Any]]:
    """Time each version: milliseconds of every repetition, the fastest and the quartiles.

    The versions alternate, so that other load on the machine affects all equally; a first round warms up.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            synchronize()
            start = clock()
            step()
            synchronize()
            if number > 0:
                times[name].append(1e3 * (clock() - start))
        gc.collect()
    return {name: summary(values) for name, values in times.items()}


def summary(milliseconds: list[float]) -> dict[str, Any]:
    """Summarize repetitions, at least two: all of them, the fastest and the quartiles."""
    return {
        "milliseconds": [round(value, 3) for value in milliseconds],
        "fastest": round(min(milliseconds), 3),
        "quartiles": [round(value, 3) for value in statistics.quantiles(milliseconds, n=4, method="inclusive")],
    }


def environment() -> dict[str, Any]:
    """Record machine, versions, commit, command and load."""
    commit = git_commit() or ""
    return {
        "machine": {
            "processor": device_name(torch.device("cpu")),
            "cores": os.cpu_count(),
            "gpu": device_name(torch.device("cuda")) if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit.removesuffix("-dirty"),
        "changed": commit.endswith("-dirty"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "load_before": os.getloadavg()[0],
    }


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
