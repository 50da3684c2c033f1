"""Thousands of runs: what planning them takes."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

FULL = os.environ.get("BEYONDPIXEL_FAULTS") == "full"
ROWS, SEEDS = (1000, 5) if FULL else (40, 2)
TIMES_ONE_RUN, MEGABYTES = 4, 1500
SPEC = {
    "base": ["data/shapes", "recipe/demo"],
    "config": {"model": {"class_path": "DeepLabModule", "init_args": {"encoder": "resnet18", "loss": {"name": "rmi"}}}},
    "row": "size{size}_df{df}_lr{lr}",
    "grid": {
        "size": {"model.loss.region_size": [1, 2, 3, 4, 5]},
        "df": {"model.loss.downsampling_factor": [2, 4]},
        "lr": {"model.lr": [number / 10_000 for number in range(1, ROWS // 10 + 1)]},
    },
}
# Linux counts the memory of the process that starts another as the other's, too: a small process starts the command.
MEASURE = """\
import resource, subprocess, sys
subprocess.call(sys.argv[1:])
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""
pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.mark.usefixtures("quiet")
def test_a_plan_of_thousands_of_runs_takes_little_more_than_one_of_one_run(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The whole command, checks of data, networks and losses included."""
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "grid.yaml").write_text(yaml.safe_dump(SPEC))
    of_one, _ = planned(tmp_path, "big/size1_df2_lr0.0001", "--seeds", "1")
    seconds, megabytes = planned(tmp_path, "big", "--seeds", *(str(seed) for seed in range(1, SEEDS + 1)))
    record_property("tried", f"{ROWS * SEEDS:,} runs planned in {seconds:.0f} CPU seconds and {megabytes:,.0f} MB")
    assert seconds < TIMES_ONE_RUN * of_one
    assert megabytes < MEGABYTES


def planned(folder: Path, *words: str) -> tuple[float, float]:
    """CPU seconds and megabytes of a plan."""
    command = [sys.executable, "-m", "beyondpixel.experiments", "launch", *words, "--dry-run"]
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, *command], cwd=folder, capture_output=True, text=True, check=True
    )
    text = measured.stdout + measured.stderr
    # with more runs than the disk has room for, it says so after all checks
    assert re.search(r"of \d+ runs to do|the runs need about [\d.]+ GB", text), text[-2000:]
    seconds, megabytes = map(float, measured.stdout.splitlines()[-1].split())
    return seconds, megabytes
