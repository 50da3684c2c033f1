"""W&B under real faults: runs that are killed with all their processes, and servers that fail, on this machine."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import wandb

from beyondpixel.experiments import sync as sync_module
from beyondpixel.experiments import tracking
from beyondpixel.experiments.run.folder import RunFolder, write_atomically
from beyondpixel.experiments.sync import sync
from beyondpixel.experiments.wandb_server import server_fault

KILLS = 20 if os.environ.get("BEYONDPIXEL_FAULTS") == "full" else 3
STEPS = 150
MOST_STEPS_UNTIL_A_KILL = 40
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes as Linux tells them")

# a fork has everything imported, W&B included
assert wandb.__version__
FORK = multiprocessing.get_context("fork")


def log_run(folder: RunFolder, steps: int, pause: float, limit: float) -> None:
    """Log as a training does, with a checkpoint of its own kind each ten steps; `limit` is W&B's patience."""
    sys.stdout = sys.stderr = (folder.path / "said").open("a", buffering=1)
    tracking.rank_zero_info = tracking.rank_zero_warn = print  # pytest records warnings
    tracking.SECONDS_TO_BEGIN = tracking.SECONDS_TO_END = limit
    checkpoint = folder.path / "checkpoint.json"
    size, done = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, 0)
    folder.cut_metrics(size)
    folder.update_state(status="running")
    loggers = [tracking.RunFolderLogger(folder), tracking.wandb_logger(folder, folder.config, folder.record)]
    for step in range(done + 1, steps + 1):
        figures = {"train/loss": zlib.crc32(str(step).encode()) / 2**32, "train/images_per_s": time.time()}
        for logger in loggers:
            logger.log_metrics(figures, step)
        if step % 10 == 0:
            for logger in loggers:
                logger.log_metrics({"val/mIoU": step / 1000}, step)
            write_atomically(checkpoint, json.dumps([folder.metrics_size, step]))
        time.sleep(pause)
    loggers[0].finalize("success")
    tracking.finish_wandb()
    folder.update_state(status="done")


@pytest.fixture
def server(load_file: Callable[[Path], ModuleType]) -> Iterator[Any]:
    one = load_file(Path(__file__).with_name("wandb_server.py")).WandbServer()
    yield one
    one.close()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "outputs" / "t" / "r" / "seed1")
    run.config = {"model": {"lr": 0.1}}
    run.record = {
        **{"name": "t/r", "table": "t", "row": "r", "seed": 1, "axes": {"loss": "ce"}, "wandb_id": "abcd1234"},
        **{"git_commit": None, "environment": {}},
    }
    return run


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Sets W&B's variables in place of those that are there, which would share W&B's process with this one."""
    for name in [name for name in os.environ if "WANDB" in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sync_module, "offline_reason", lambda: None)

    def change(**variables: str) -> None:
        monkeypatch.delenv("WANDB_MODE", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


def start(folder: RunFolder, steps: int = STEPS, *, pause: float = 0.0, limit: float = 30) -> BaseProcess:
    process = FORK.Process(target=log_run, args=(folder, steps, pause, limit))
    process.start()
    return process


def output_of(process: BaseProcess, folder: RunFolder) -> str:
    process.join()
    said = (folder.path / "said").read_text()
    assert process.exitcode == 0, said
    return said


def kill_with_children(process: BaseProcess) -> None:
    """As a cluster does: all processes of a job at once."""

    def children(number: int) -> list[int]:
        files = Path(f"/proc/{number}/task").glob("*/children")
        found = [int(child) for file in files for child in file.read_text().split()]
        return [*found, *(one for child in found for one in children(child))]

    for number in [process.pid, *children(process.pid)]:
        os.kill(number, signal.SIGKILL)
    process.join()


def lines_of(folder: RunFolder) -> int:
    return folder.metrics_file.read_bytes().count(b"\n") if folder.metrics_file.exists() else 0


def assert_whole(server: Any, folder: RunFolder, steps: int = STEPS) -> None:
    lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, steps + 1))
    expected = [
        {("trainer/global_step" if key == "step" else key): value for key, value in line.items()} for line in lines
    ]
    assert server.steps("abcd1234") == expected


@pytest.mark.slow
@pytest.mark.faults
def test_after_kills_the_uploaded_history_is_that_of_the_folder(
    server: Any, folder: RunFolder, account: Callable[..., None], record_property: Callable[[str, object], None]
) -> None:
    account(WANDB_MODE="offline")
    rng = random.Random(0)
    steps = (MOST_STEPS_UNTIL_A_KILL + 10) * KILLS  # so that no kill comes too late
    for number in range(KILLS):
        before, logs = lines_of(folder), set(folder.path.glob("wandb/*/*.wandb"))
        process = start(folder, steps, pause=0.03)
        # the first kill comes while W&B makes its files, the others after some steps
        further = rng.randint(0, MOST_STEPS_UNTIL_A_KILL)
        while process.is_alive() and (
            set(folder.path.glob("wandb/*/*.wandb")) == logs if number == 0 else lines_of(folder) <= before + further
        ):
            time.sleep(0.005)
        assert process.is_alive(), (folder.path / "said").read_text()
        kill_with_children(process)
    output_of(start(folder, steps), folder)
    account(**server.environment)
    assert sync([folder.path])
    assert_whole(server, folder, steps)
    made = server.runs["abcd1234"]
    assert (made["groupName"], made["displayName"]) == ("t/r", "t/r/seed1")
    assert json.loads(made["config"])["loss"] == {"value": "ce"}
    assert sync([folder.path]) == []
    record_property("tried", f"{KILLS} kills")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("500", "127.0.0.1 answers with error 500"),
        ("401", "127.0.0.1 does not accept the API key"),
        ("hang", "127.0.0.1 does not answer"),
        ("html", "127.0.0.1 does not answer like a W&B server"),
        (None, None),
    ],
)
def test_an_unusable_server_is_found_out_before_the_training(
    server: Any, fault: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beyondpixel.experiments.wandb_server.SECONDS_FOR_AN_ANSWER", 1.0)
    server.fault = fault
    assert server_fault(server.environment["WANDB_BASE_URL"], "k" * 40) == said


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("moment", ["at its begin", "on its way"])
def test_a_run_goes_on_without_a_server_that_fails(
    server: Any, folder: RunFolder, account: Callable[..., None], moment: str
) -> None:
    """The server knows the key, but fails when a run is made, or when it has some steps."""
    account(**server.environment)
    if moment == "at its begin":
        server.fault, server.fault_of = "500", "upsertBucket"
    process = start(folder, pause=0.02, limit=4)
    if moment == "on its way":
        while process.is_alive() and not (server.runs and folder.metrics_size > 600):
            time.sleep(0.01)
        server.fault = "500"
    said = output_of(process, folder)
    assert said.count("upload later with: beyondpixel sync") == 1
    assert "Traceback" not in said
    assert folder.status == "done"
    server.fault = None
    assert sync([folder.path])
    assert_whole(server, folder)
