"""Trainings that are killed many times, and long ones: forks of this process, which has everything imported."""

import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from beyondpixel.datamodules.datasets.base import Sample
from beyondpixel.datamodules.shapes import GeneratedScenes
from beyondpixel.experiments.errors import STOPPED
from beyondpixel.experiments.job import main, run_job
from beyondpixel.experiments.resolve import complete
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.run.status import Status

FULL = os.environ.get("BEYONDPIXEL_FAULTS") == "full"
RUNS, KILLS = (16, 50) if FULL else (1, 2)
FORK = multiprocessing.get_context("fork")
TIMES = ("train/images_per_s", "test/seconds_per_image")  # what a clock says differs
pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture
def tiny(tiny: dict[str, Any]) -> dict[str, Any]:
    """With the encoder of fewest weights, since it is trained again and again."""
    tiny["model"]["init_args"]["encoder"] = "tu-test_resnet"
    return tiny


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
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in folder.metrics()],
        "summary": {k: v for k, v in folder.summary.items() if k not in TIMES},
        "state": folder.state,
    }


def finish(folder: RunFolder) -> None:
    process = start(folder)
    process.join()
    assert process.exitcode == 0, (folder.path / "said").read_text()[-2000:]


def test_killed_runs_end_bit_identically(
    tmp_path: Path, tiny: dict[str, Any], quiet: Callable[..., dict[str, str]], record_property: Callable[..., None]
) -> None:
    """At random moments, from the first write to the last; W&B logs to its files meanwhile."""
    quiet(WANDB_MODE="offline")
    tiny["trainer"]["max_steps"] = 20  # six a pass
    rng = random.Random(0)
    done = 0
    for seed in range(1, RUNS + 1):
        whole, killed = (prepare(tmp_path / name / f"seed{seed}", tiny, seed) for name in ("whole", "killed"))
        finish(whole)
        size = whole.metrics_size
        for _ in range(KILLS * seed // RUNS - KILLS * (seed - 1) // RUNS):
            moment = rng.uniform(0, size)
            process = start(killed)
            while process.is_alive() and killed.metrics_size < moment:
                time.sleep(rng.uniform(0, 0.01))
            done += process.is_alive()
            kill(process)
        finish(killed)
        assert outcome(killed) == outcome(whole)
        assert not list(killed.path.rglob("*.part"))
        parts = {part.name.rpartition("-")[2] for part in killed.path.glob("wandb/offline-run-*")}
        assert parts == {killed.record["wandb_id"]}  # drawn once, however early it was killed
    record_property("tried", f"{done} kills, {RUNS} runs")


def test_a_run_killed_between_its_files_is_tested_again(
    tmp_path: Path, tiny: dict[str, Any], quiet: Callable[..., dict[str, str]]
) -> None:
    """After the confusion matrix and before the scores, which are written last."""
    quiet(WANDB_MODE="disabled")
    tiny["trainer"]["max_steps"] = 2
    run = prepare(tmp_path / "run", tiny, 1)
    run_job(run.path)
    whole = outcome(run)
    run.summary = {name: value for name, value in run.summary.items() if not name.startswith("test/")}
    run.update_state(status=Status.TRAINED)
    run_job(run.path)
    assert outcome(run) == whole


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_stops_a_training_with_a_checkpoint(
    tmp_path: Path, tiny: dict[str, Any], quiet: Callable[..., dict[str, str]], number: signal.Signals
) -> None:
    quiet(WANDB_MODE="disabled")
    tiny["trainer"]["max_steps"] = 400
    folder = prepare(tmp_path / "run", tiny, 1)

    process = start(folder, as_command)
    while process.is_alive() and folder.metrics_size < 400:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert (process.exitcode, folder.state["status"]) == (STOPPED, "stopped"), (folder.path / "said").read_text()
    assert torch.load(folder.last_checkpoint, weights_only=True)["global_step"] == folder.state["step"] > 0


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


@pytest.fixture(scope="module")
def outcomes() -> dict[int, dict[str, Any]]:
    """Of runs that were left alone, by their steps."""
    return {}


@pytest.fixture
def uninterrupted(
    outcomes: dict[int, dict[str, Any]], tiny: dict[str, Any], quiet: Callable[..., dict[str, str]], tmp_path: Path
) -> Callable[[int], dict[str, Any]]:
    """The outcome of a run of some steps that was left alone."""
    quiet(WANDB_MODE="disabled")

    def get(steps: int) -> dict[str, Any]:
        if steps not in outcomes:
            tiny["trainer"]["max_steps"] = steps
            whole = prepare(tmp_path / "whole", tiny, 1)
            finish(whole)
            outcomes[steps] = outcome(whole)
        return outcomes[steps]

    return get


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
    run = prepare(tmp_path / "run", tiny, 1)
    mark = tmp_path / "mark"

    def get_stuck() -> None:  # a worker reads training samples ahead
        if sample.startswith("train") or steps_of(run) == done:
            mark.touch()
            time.sleep(3600)

    with monkeypatch.context() as patch:
        misbehave(patch, sample, get_stuck)
        process = start(run, as_command)
        while process.is_alive() and not (mark.exists() and steps_of(run) == done):
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
    assert seconds < 10
    finish(run)
    assert outcome(run) == whole


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
    tmp_path: Path,
    tiny: dict[str, Any],
    two_processes: Callable[..., subprocess.Popen[str]],
    outcome_of_two: dict[str, Any],
    split: str,
    numbers: str,
) -> None:
    """The other one waits for it, which no signal interrupts by itself; the run goes on as if nothing had been."""
    run = prepare(tmp_path / "run", tiny, 1)
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
    whole = prepare(tmp_path / "whole", tiny, 1)
    for folder in [run] if outcome_of_two else [run, whole]:
        with two_processes(folder) as process:
            assert process.wait() == 0, (folder.path / "said").read_text()
    if not outcome_of_two:
        outcome_of_two.update(outcome(whole))
    assert outcome(run) == outcome_of_two


@pytest.mark.parametrize("number", [0, 1] if FULL else [1])
def test_a_damaged_sample_ends_two_processes_with_a_checkpoint(
    tmp_path: Path, tiny: dict[str, Any], two_processes: Callable[..., subprocess.Popen[str]], number: int
) -> None:
    run = prepare(tmp_path / "run", tiny, 1)
    with two_processes(run, BAD_SPLIT="train", BAD_PROCESSES=str(number), DAMAGED="1") as process:
        assert process.wait() == 1
    said = (run.path / "said").read_text()
    assert run.state["status"] == "failed"
    assert ("is damaged", "another process of this run has ended")[number] in run.state["error"]
    assert re.search(r"beyondpixel: train_\d+: is damaged", said)
    assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == run.state["step"] > 0
    assert "Traceback" not in said


def train_misbehaving(run: RunFolder, monkeypatch: pytest.MonkeyPatch, sample: str, action: Callable[[], None]) -> int:
    """Train to the end, however it ends; the exit code."""
    with monkeypatch.context() as patch:
        misbehave(patch, sample, action)
        process = start(run, as_command)
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def test_a_killed_worker_leaves_a_checkpoint_and_names_the_samples_it_held(
    tmp_path: Path,
    tiny: dict[str, Any],
    uninterrupted: Callable[[int], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = uninterrupted(8)
    tiny["data"]["init_args"] |= {"num_workers": 1, "cache": None}
    run = prepare(tmp_path / "run", tiny, 1)
    code = train_misbehaving(run, monkeypatch, "train_00008", lambda: os.kill(os.getpid(), signal.SIGKILL))
    said = (run.path / "said").read_text()
    assert (code, run.state["status"]) == (1, "failed"), said
    assert "Traceback" not in said
    assert run.state["error"] in said
    assert re.search(r"The data workers stopped: .*\n(.*\n)*  train_\d+\n", run.state["error"])
    done = torch.load(run.last_checkpoint, weights_only=True)["global_step"]
    assert done == run.state["step"] == steps_of(run)
    finish(run)
    assert outcome(run) == whole


def test_a_run_stops_while_there_is_time_for_a_step_and_a_checkpoint(
    tmp_path: Path,
    tiny: dict[str, Any],
    uninterrupted: Callable[[int], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps take four seconds each, and SLURM's end comes before the last of eight; nobody warns of it."""
    whole = uninterrupted(8)
    tiny["data"]["init_args"]["cache"] = None
    run = prepare(tmp_path / "run", tiny, 1)

    def be_slow() -> None:
        end = os.environ.setdefault("SLURM_JOB_END_TIME", str(time.time() + 14))
        (tmp_path / "end").write_text(end)
        time.sleep(1)

    code = train_misbehaving(run, monkeypatch, "train", be_slow)
    assert (code, run.state["status"]) == (STOPPED, "stopped"), (run.path / "said").read_text()
    assert run.last_checkpoint.stat().st_mtime < float((tmp_path / "end").read_text())
    assert 0 < run.state["step"] < 8
    finish(run)
    assert outcome(run) == whole


@pytest.mark.skipif(not FULL, reason="2,000 steps take minutes; make faults takes them")
def test_memory_stays_flat_over_2000_steps(
    tmp_path: Path, tiny: dict[str, Any], quiet: Callable[..., dict[str, str]], record_property: Callable[..., None]
) -> None:
    quiet(WANDB_MODE="disabled")
    tiny["trainer"] |= {"max_steps": 2000, "log_every_n_steps": 50, "check_val_every_n_epoch": 50}
    folder = prepare(tmp_path / "run", tiny, 1)
    process = start(folder)
    page = os.sysconf("SC_PAGE_SIZE")
    measured: dict[int, float] = {}
    while process.is_alive():
        lines = [line["step"] for line in folder.metrics()]
        resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1] or 0) * page / 2**20
        if lines and resident:
            measured.setdefault(int(lines[-1]), resident)
        time.sleep(0.1)
    assert process.exitcode == 0, (folder.path / "said").read_text()[-2000:]
    early, late = (
        value for value in (measured[min(step for step in measured if step >= 500)], measured[max(measured)])
    )
    record_property("tried", f"{max(measured)} steps: {early:.0f} to {late:.0f} MB")
    assert late < 1.05 * early, json.dumps(measured)
