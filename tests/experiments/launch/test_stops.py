"""Signals, and the end of SLURM's time, to a training on one process."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from beyondpixel.experiments import stop_signals
from beyondpixel.experiments.errors import STOPPED

FULL = os.environ.get("BEYONDPIXEL_FAULTS") == "full"
pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_stops_a_training_with_a_checkpoint(
    forks: ModuleType,
    tmp_path: Path,
    tiny: dict[str, Any],
    quiet: Callable[..., dict[str, str]],
    number: signal.Signals,
) -> None:
    quiet(WANDB_MODE="disabled")
    tiny["trainer"]["max_steps"] = 400
    folder = forks.prepare(tmp_path / "run", tiny, 1)

    process = forks.start(folder, forks.as_command)
    while process.is_alive() and folder.metrics_size < 400:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert (process.exitcode, folder.state["status"]) == (STOPPED, "stopped"), (folder.path / "said").read_text()
    assert torch.load(folder.last_checkpoint, weights_only=True)["global_step"] == folder.state["step"] > 0


@pytest.mark.parametrize(
    ("sample", "done", "steps", "workers"),
    [
        ("val_00000", 0, 8, 1),  # the first look at validation data, before the training
        ("train_00008", 4, 8, 1),
        ("val_00001", 6, 8, 0),
        ("val_00001", 6, 6, 1),  # after the last step
        ("test_00002", 6, 6, 0),
    ],
)
def test_a_signal_ends_the_wait_for_data_that_do_not_come(
    forks: ModuleType,
    tmp_path: Path,
    tiny: dict[str, Any],
    uninterrupted: Callable[[int], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    sample: str,
    done: int,
    steps: int,
    workers: int,
) -> None:
    """In whatever the run does it ends within ten seconds, loses no step, and goes on as if nothing had been."""
    whole = uninterrupted(steps)
    tiny["trainer"]["max_steps"] = steps
    tiny["data"]["init_args"] |= {"num_workers": workers, "cache": None}
    run = forks.prepare(tmp_path / "run", tiny, 1)
    mark = tmp_path / "mark"

    def get_stuck() -> None:  # a worker reads training samples ahead
        if sample.startswith("train") or forks.steps_of(run) == done:
            mark.touch()
            time.sleep(3600)

    with monkeypatch.context() as patch:
        forks.misbehave(patch, sample, get_stuck)
        process = forks.start(run, forks.as_command)
        while process.is_alive() and not (mark.exists() and forks.steps_of(run) == done):
            time.sleep(0.01)
        time.sleep(0.5)
        asked = time.monotonic()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join()
        seconds = time.monotonic() - asked
    assert (process.exitcode, run.state["status"]) == (STOPPED, "stopped"), (run.path / "said").read_text()
    assert run.last_checkpoint.exists() == (done > 0)
    if done:
        assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == done
    assert seconds < (10 if FULL else 100)  # the suite may run on a busy machine
    forks.finish(run)
    assert forks.outcome(run) == whole


def test_a_run_stops_while_there_is_time_for_a_step_and_a_checkpoint(
    forks: ModuleType,
    tmp_path: Path,
    tiny: dict[str, Any],
    uninterrupted: Callable[[int], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps take four seconds each, and SLURM's end comes before the last of eight; nobody warns of it."""
    whole = uninterrupted(8)
    tiny["data"]["init_args"]["cache"] = None
    run = forks.prepare(tmp_path / "run", tiny, 1)

    def be_slow() -> None:
        end = os.environ.setdefault("SLURM_JOB_END_TIME", str(time.time() + 14))
        (tmp_path / "end").write_text(end)
        time.sleep(1)

    code = forks.train_misbehaving(run, monkeypatch, "train", be_slow)
    assert (code, run.state["status"]) == (STOPPED, "stopped"), (run.path / "said").read_text()
    assert run.last_checkpoint.stat().st_mtime < float((tmp_path / "end").read_text())
    assert 0 < run.state["step"] < 8
    forks.finish(run)
    assert forks.outcome(run) == whole


def test_an_evaluation_ends_the_processes_that_the_training_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signals, "_started", [])
    trainers: list[Any] = []
    with subprocess.Popen(["sleep", "600"]) as other:
        for started in ([other], []):  # by the training's Trainer, and none by the evaluation's
            launcher = _SubprocessScriptLauncher.__new__(_SubprocessScriptLauncher)
            launcher.procs = started
            trainers.append(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))
            stop_signals.StopAtOnce(None).setup(trainers[-1], torch.nn.Module(), "test")  # type: ignore[arg-type]
        stop_signals.end_other_processes(trainers[1], signal.SIGTERM)
        assert other.wait(timeout=60) == -signal.SIGTERM
