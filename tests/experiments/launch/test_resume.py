"""A run that was killed or stopped, and resumed, ends bit for bit as one that was left alone."""

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from pytorch_lightning import Trainer

from beyondpixel.experiments.job import run_job
from beyondpixel.experiments.launch.lock import HeldError, RunLock, holder_of
from beyondpixel.experiments.resolve import complete
from beyondpixel.experiments.run.folder import RunFolder

COMMAND = [sys.executable, "-m", "beyondpixel.experiments.job"]
COSTS = ("train/images_per_s", "train/peak_memory_mb", "test/seconds_per_image")  # differ between equal runs


def prepare(path: Path, config: dict[str, Any]) -> RunFolder:
    folder = RunFolder(path)
    resolved, errors = complete(config)
    assert not errors
    trainer = {**resolved["trainer"], "default_root_dir": str(path)}
    folder.config = {**resolved, "seed_everything": 3, "trainer": trainer}
    return folder


def outcome(folder: RunFolder) -> dict[str, Any]:
    """Everything that must not depend on interruptions."""
    checkpoint = torch.load(folder.last_checkpoint, weights_only=True)
    best = torch.load(folder.path / "checkpoints" / "best.ckpt", weights_only=True)

    def digest(values: dict[str, Any]) -> str:
        parts = [key.encode() + value.numpy().tobytes() for key, value in values.items() if torch.is_tensor(value)]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    (optimizer,) = checkpoint["optimizer_states"]
    return {
        "weights": digest(checkpoint["state_dict"]),
        "momentum": [digest(state) for state in optimizer["state"].values()],
        "schedule": checkpoint["lr_schedulers"],
        "step": (checkpoint["global_step"], checkpoint["epoch"]),
        "best": (best["global_step"], digest(best["state_dict"])),
        "metrics": [{k: v for k, v in line.items() if k not in COSTS} for line in folder.metrics()],
        "summary": {k: v for k, v in folder.summary.items() if k not in COSTS},
        "state": folder.state,
    }


def longer(config: dict[str, Any]) -> dict[str, Any]:
    config["trainer"]["max_steps"] = 20  # six a pass
    config["data"]["init_args"]["num_workers"] = 1  # a worker would keep the lock, were it handed down
    return config


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes that are started here: sums that are split among threads round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    return {}


@pytest.fixture
def uninterrupted(
    outcomes: dict[str, Any], tiny: dict[str, Any], quiet: Callable[..., dict[str, str]], tmp_path: Path
) -> dict[str, Any]:
    if not outcomes:
        quiet(WANDB_MODE="disabled")
        folder = prepare(tmp_path / "whole", longer(tiny))
        run_job(folder.path)
        outcomes.update(outcome(folder))
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_run_ends_bit_identically(
    number: signal.Signals,
    tmp_path: Path,
    tiny: dict[str, Any],
    quiet: Callable[..., dict[str, str]],
    uninterrupted: dict[str, Any],
) -> None:
    folder = prepare(tmp_path / "run", longer(tiny))
    environment = quiet(WANDB_MODE="disabled")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*COMMAND, folder.path], env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 200
        while sum("train/loss" in line for line in folder.metrics()) < 9 and time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        with pytest.raises(HeldError, match=rf"is being worked on by process {process.pid} on "):
            run_job(folder.path, patience=0)
        process.send_signal(number)
        code = process.wait(timeout=120)
    said = (tmp_path / "log").read_text()
    step = torch.load(folder.last_checkpoint, weights_only=True)["global_step"]
    if number == signal.SIGKILL:
        assert (code, folder.state["status"]) == (-number, "running"), said
        assert step % 6 == 0  # the last whole pass
    else:
        assert (code, folder.state["status"]) == (130, "stopped"), said
        assert folder.state["step"] == step >= 9
    assert 6 <= step < 20
    with RunLock(folder.lock_file, patience=20):  # free, however the process ended
        pass
    assert holder_of(folder.lock_file) is None

    run_job(folder.path)
    assert outcome(folder) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("status", ["trained", "stopped"])
def test_a_run_stopped_in_its_test_is_only_tested_again(
    *,
    status: str,
    tmp_path: Path,
    tiny: dict[str, Any],
    quiet: Callable[..., dict[str, str]],
    uninterrupted: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet(WANDB_MODE="disabled")
    folder = prepare(tmp_path / "run", longer(tiny))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "test", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_job(folder.path)
    assert folder.state["status"] == "trained"
    folder.update_state(status=status)
    run_job(folder.path)
    assert outcome(folder) == uninterrupted


@pytest.mark.slow
def test_a_run_that_is_moved_and_resumed_keeps_its_best_checkpoint(
    forks: ModuleType, tmp_path: Path, tiny: dict[str, Any], quiet: Callable[..., dict[str, str]]
) -> None:
    """The score of `best` is changed to one that no later validation reaches."""
    quiet(WANDB_MODE="disabled")
    run = forks.prepare(tmp_path / "run", longer(tiny), 1)
    process = forks.start(run)
    while process.is_alive() and forks.steps_of(run) < 9:
        time.sleep(0.01)
    forks.kill(process)
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    (state,) = (state for state in checkpoint["callbacks"].values() if "best_model_score" in state)
    state["best_model_score"] = state["kth_value"] = torch.tensor(1.0)
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(1.0))
    torch.save(checkpoint, run.last_checkpoint)
    moved = RunFolder(run.path.rename(tmp_path / "moved"))
    best = moved.path / "checkpoints" / "best.ckpt"
    before = best.read_bytes()

    forks.finish(moved)
    assert torch.load(moved.last_checkpoint, weights_only=True)["global_step"] == 20
    assert best.read_bytes() == before
