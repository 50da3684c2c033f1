"""Trainings in forks of this process, which has everything imported: begun, killed, finished, and compared."""

import hashlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from beyondpixel.datamodules.datasets.base import Sample
from beyondpixel.datamodules.shapes import GeneratedScenes
from beyondpixel.experiments.job import main, run_job
from beyondpixel.experiments.resolve import complete
from beyondpixel.experiments.run.folder import RunFolder

FORK = multiprocessing.get_context("fork")
COSTS = ("train/images_per_s", "train/peak_memory_mb", "test/seconds_per_image")  # differ between equal runs


def prepare(path: Path, config: dict[str, Any], seed: int) -> RunFolder:
    folder = RunFolder(path)
    resolved, errors = complete(config)
    assert not errors
    folder.config = {
        **resolved,
        "seed_everything": seed,
        "trainer": {**resolved["trainer"], "default_root_dir": str(path)},
    }
    return folder


def start(folder: RunFolder, job: Callable[[Path], object] = run_job) -> BaseProcess:
    def work() -> None:
        torch.set_num_threads(1)
        os.setsid()  # so that W&B and data workers can be killed with it
        sys.stdout = sys.stderr = (folder.path / "said").open("a", buffering=1)
        job(folder.path)

    process = FORK.Process(target=work)
    process.start()
    return process


def as_command(path: Path) -> None:
    """What `beyondpixel run-job` does, in a terminal and not under nohup, where these tests may run."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.argv = ["job", str(path)]
    main()


def kill(process: BaseProcess) -> None:
    """Kill a process with all that it has started."""
    if process.is_alive() and process.pid is not None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not begun a session yet
            os.kill(process.pid, signal.SIGKILL)
    process.join()


def outcome(folder: RunFolder) -> dict[str, Any]:
    """Everything that must not depend on interruptions."""
    checkpoint = torch.load(folder.last_checkpoint, weights_only=True)
    content = b"".join(key.encode() + value.numpy().tobytes() for key, value in checkpoint["state_dict"].items())
    return {
        "weights": hashlib.sha256(content).hexdigest(),
        "metrics": [{k: v for k, v in line.items() if k not in COSTS} for line in folder.metrics()],
        "summary": {k: v for k, v in folder.summary.items() if k not in COSTS},
        "state": folder.state,
    }


def finish(folder: RunFolder) -> None:
    process = start(folder)
    process.join()
    assert process.exitcode == 0, (folder.path / "said").read_text()[-2000:]


def misbehave(patch: pytest.MonkeyPatch, sample: str, action: Callable[[], None]) -> None:
    """Let a process do something when it reads one of the samples whose names begin so."""
    read = GeneratedScenes.__getitem__

    def odd(scenes: GeneratedScenes, index: int) -> Sample:
        if scenes.ids[index].startswith(sample):
            action()
        return read(scenes, index)

    patch.setattr(GeneratedScenes, "__getitem__", odd)


def steps_of(folder: RunFolder) -> int:
    return sum("train/loss" in line for line in folder.metrics())


def train_misbehaving(run: RunFolder, monkeypatch: pytest.MonkeyPatch, sample: str, action: Callable[[], None]) -> int:
    """Train to the end, however it ends; the exit code."""
    with monkeypatch.context() as patch:
        misbehave(patch, sample, action)
        process = start(run, as_command)
        process.join()
    assert process.exitcode is not None
    return process.exitcode
