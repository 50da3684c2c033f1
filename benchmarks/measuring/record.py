"""Repeated timings, and the JSON file that a benchmark writes: all that is needed to judge its figures later."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CHECKOUT = Path(__file__).resolve().parents[2]


def race(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every repetition; the versions take turns, so that other work harms all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            _synchronize()
            start = time.perf_counter()
            step()
            _synchronize()
            if number > 0:  # the first round warms up
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Every repetition, fastest, median and quartiles of each version."""
    return {
        name: {
            "milliseconds": [round(value, 3) for value in values],
            "fastest": round(min(values), 3),
            "quartiles": [round(value, 3) for value in statistics.quantiles(values, n=4, method="inclusive")],
        }
        for name, values in times.items()
    }


def environment() -> dict[str, Any]:
    """Machine, versions, commit and load."""
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=CHECKOUT, check=False).returncode != 0
    return {
        "machine": {
            "processor": names[0] if names else platform.processor(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit.stdout.strip() + (" with changes" if changed else ""),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "load_before": os.getloadavg(),
    }


def write(file: Path, record: dict[str, Any]) -> None:
    """Write the record, with the load at its end."""
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {**record, "load_after": os.getloadavg()}
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
