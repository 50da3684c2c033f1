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
CPU_SECONDS, MEGABYTES = 60, 1500
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
pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.mark.usefixtures("quiet")
def test_a_plan_of_thousands_of_runs_takes_a_minute_and_little_memory(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The whole command, checks of data, networks and losses included."""
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "grid.yaml").write_text(yaml.safe_dump(SPEC))
    seeds = [str(seed) for seed in range(1, SEEDS + 1)]
    command = [sys.executable, "-m", "beyondpixel.experiments", "launch", "big", "--dry-run", "--seeds", *seeds]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said, env=os.environ)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # so that nobody waits for it again
    text = (tmp_path / "said").read_text()
    # with more runs than the disk has room for, it says so after all checks
    assert re.search(r"of \d+ runs to do|the runs need about [\d.]+ GB", text), text[-2000:]
    seconds, megabytes = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    record_property("tried", f"{ROWS * SEEDS:,} runs planned in {seconds:.0f} CPU seconds and {megabytes:,.0f} MB")
    assert seconds < CPU_SECONDS
    assert megabytes < MEGABYTES
