"""Signals and damaged samples to a training on two processes."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from beyondpixel.experiments.errors import STOPPED
from beyondpixel.experiments.run.folder import RunFolder

FULL = os.environ.get("BEYONDPIXEL_FAULTS") == "full"
pytestmark = [pytest.mark.slow, pytest.mark.faults]

# a data module of which one process cannot read its tenth training sample, or its first of another split
BAD_DATA = """
import os, time
from pathlib import Path
from beyondpixel.datamodules import ShapesDataModule
from beyondpixel.datamodules.datasets.errors import DataError
from beyondpixel.datamodules.shapes import GeneratedScenes

read = GeneratedScenes.__getitem__
seen = []

def read_badly(scenes, index):
    name = scenes.ids[index]
    if name.startswith(os.environ["BAD_SPLIT"]):
        seen.append(name)
        if len(seen) == (10 if name.startswith("train") else 1):
            Path(os.environ["MARK"]).touch()
            if "DAMAGED" in os.environ:
                raise DataError(f"{name}: is damaged")
            time.sleep(3600)
    return read(scenes, index)

class BadShapes(ShapesDataModule):
    pass

if os.environ.get("LOCAL_RANK", "0") in os.environ.get("BAD_PROCESSES", ""):
    GeneratedScenes.__getitem__ = read_badly
"""


@pytest.fixture(scope="module")
def outcome_of_two() -> dict[str, Any]:
    """Of a run on two processes that was left alone, once it is known."""
    return {}


@pytest.fixture
def two_processes(
    tmp_path: Path, tiny: dict[str, Any], quiet: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.Popen[str]]:
    """Starts a run on two processes, of which one meets a bad sample where the variables of `BAD_DATA` say so."""
    (tmp_path / "bad_data.py").write_text(BAD_DATA)
    environment = quiet(
        WANDB_MODE="disabled",
        PYTHONPATH=str(tmp_path),
        BEYONDPIXEL_ALLOW_IMPORT="bad_data",
        MARK=str(tmp_path / "mark"),
    )
    monkeypatch.syspath_prepend(tmp_path)
    tiny["trainer"] |= {"max_steps": 8, "devices": 2, "strategy": "ddp"}
    tiny["data"]["class_path"] = "bad_data.BadShapes"
    tiny["data"]["init_args"] |= {"num_workers": 0, "cache": None}

    def command(run: RunFolder, **more: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "beyondpixel.experiments.job", str(run.path)]
        said = (run.path / "said").open("a")
        return subprocess.Popen(words, env={**environment, **more}, stdout=said, stderr=said, text=True)

    return command


def has_processes(run: RunFolder) -> bool:
    """Whether a process has the run's folder among its words."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if os.fsencode(run.path) in file.read_bytes().split(b"\0"):
                return True
    return False


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train", "1"),
        *((split, n) for split in ("train", "val", "test") for n in ("0", "1", "01") if FULL and split + n != "train1"),
    ],
)
def test_a_signal_ends_two_processes_of_which_one_waits_for_data(
    forks: ModuleType,
    tmp_path: Path,
    tiny: dict[str, Any],
    two_processes: Callable[..., subprocess.Popen[str]],
    outcome_of_two: dict[str, Any],
    split: str,
    numbers: str,
) -> None:
    """The other one waits for it, which no signal interrupts by itself; the run goes on as if nothing had been."""
    run = forks.prepare(tmp_path / "run", tiny, 1)
    with two_processes(run, BAD_SPLIT=split, BAD_PROCESSES=numbers) as process:
        while process.poll() is None and not (tmp_path / "mark").exists():
            time.sleep(0.05)
        time.sleep(1)
        asked = time.monotonic()
        process.terminate()
        code = process.wait()
        seconds = time.monotonic() - asked
    assert (code, run.state["status"]) == (STOPPED, "stopped"), (run.path / "said").read_text()
    assert run.last_checkpoint.exists() == (split != "val")  # looked at before the training
    if run.last_checkpoint.exists():
        assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == run.state["step"] > 0
    assert seconds < (10 if FULL else 100)  # the suite may run on a busy machine
    while has_processes(run):  # none goes on by itself
        time.sleep(0.1)
    if not FULL:
        return
    whole = forks.prepare(tmp_path / "whole", tiny, 1)
    for folder in [run] if outcome_of_two else [run, whole]:
        with two_processes(folder) as process:
            assert process.wait() == 0, (folder.path / "said").read_text()
    if not outcome_of_two:
        outcome_of_two.update(forks.outcome(whole))
    assert forks.outcome(run) == outcome_of_two


@pytest.mark.parametrize("number", [0, 1] if FULL else [1])
def test_a_damaged_sample_ends_two_processes_with_a_checkpoint(
    forks: ModuleType,
    tmp_path: Path,
    tiny: dict[str, Any],
    two_processes: Callable[..., subprocess.Popen[str]],
    number: int,
) -> None:
    run = forks.prepare(tmp_path / "run", tiny, 1)
    with two_processes(run, BAD_SPLIT="train", BAD_PROCESSES=str(number), DAMAGED="1") as process:
        assert process.wait() == 1
    said = (run.path / "said").read_text()
    assert run.state["status"] == "failed"
    assert ("is damaged", "another process of this run has ended")[number] in run.state["error"]
    assert re.search(r"beyondpixel: train_\d+: is damaged", said)
    assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == run.state["step"] > 0
    assert "Traceback" not in said
