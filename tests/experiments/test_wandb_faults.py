"""W&B under real faults: runs that are killed with all their processes, and servers that fail, on this machine."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.tracking import server_fault

KILLS = int(os.environ.get("BEYONDPIXEL_FAULTS_KILLS", "3"))
LAST_STEP = 200
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes as Linux tells them")

# logs as a training does, with a checkpoint of its own kind each ten steps
LOGGING = f"""
import json, sys, time, zlib
from beyondpixel.experiments import tracking
from beyondpixel.experiments.run.folder import RunFolder, write_atomically

folder = RunFolder(sys.argv[1])
pause, tracking.SECONDS_TO_BEGIN, tracking.SECONDS_TO_END = map(float, sys.argv[2:])
checkpoint = folder.path / "checkpoint.json"
size, done = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, 0)
folder.cut_metrics(size)
folder.update_state(status="running")
loggers = [tracking.RunFolderLogger(folder), tracking.wandb_logger(folder, folder.config, folder.record)]
for step in range(done + 1, {LAST_STEP} + 1):
    figures = {{"train/loss": zlib.crc32(str(step).encode()) / 2**32, "train/images_per_s": time.time()}}
    for logger in loggers:
        logger.log_metrics(figures, step)
    if step % 10 == 0:
        for logger in loggers:
            logger.log_metrics({{"val/mIoU": step / 1000}}, step)
        write_atomically(checkpoint, json.dumps([folder.metrics_size, step]))
    time.sleep(pause)
loggers[0].finalize("success")
tracking.finish_wandb()
folder.update_state(status="done")
"""


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


def environment(tmp_path: Path, **changes: str) -> dict[str, str]:
    # with W&B's variables a process would share W&B's service with this one
    outer = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    return {**outer, "HOME": str(tmp_path), **changes}


def start(folder: RunFolder, given: dict[str, str], *, pause: float = 0.0, limit: int = 30) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOGGING, str(folder.path), str(pause), str(limit), str(limit)]
    return subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def sync(folder: RunFolder, given: dict[str, str]) -> str:
    command = [sys.executable, "-m", "beyondpixel.experiments", "sync", str(folder.path)]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kill_with_children(process: subprocess.Popen[str]) -> None:
    """As a cluster does: all processes of a job at once."""

    def children(number: int) -> list[int]:
        files = Path(f"/proc/{number}/task").glob("*/children")
        found = [int(child) for file in files for child in file.read_text().split()]
        return [*found, *(one for child in found for one in children(child))]

    for number in [process.pid, *children(process.pid)]:
        os.kill(number, signal.SIGKILL)
    process.communicate()


def assert_whole(server: Any, folder: RunFolder) -> None:
    lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, LAST_STEP + 1))
    expected = [
        {("trainer/global_step" if key == "step" else key): value for key, value in line.items()} for line in lines
    ]
    assert server.steps("abcd1234") == expected


@pytest.mark.slow
@pytest.mark.faults
def test_after_kills_the_uploaded_history_is_that_of_the_folder(
    server: Any, folder: RunFolder, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    offline = environment(tmp_path, WANDB_MODE="offline")
    rng = random.Random(0)
    early = 0
    for number in range(KILLS):
        before, parts = folder.metrics_size, set(folder.path.glob("wandb/offline-run-*/*.wandb"))
        process = start(folder, offline, pause=0.03)
        # the first kill comes while W&B makes its files, the others after some steps
        further = 60 * rng.randint(0, 40)
        while process.poll() is None and (
            set(folder.path.glob("wandb/offline-run-*/*.wandb")) == parts
            if number == 0
            else folder.metrics_size <= before + further
        ):
            time.sleep(0.005)
        early += process.poll() is None
        kill_with_children(process) if process.poll() is None else process.communicate()
    process = start(folder, offline)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    online = environment(tmp_path, **server.environment)
    assert "uploaded" in sync(folder, online)
    assert_whole(server, folder)
    made = server.runs["abcd1234"]
    assert (made["groupName"], made["displayName"]) == ("t/r", "t/r/seed1")
    assert json.loads(made["config"])["loss"] == {"value": "ce"}
    assert "Nothing to upload" in sync(folder, online)
    assert early > 0
    record_property("tried", early)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("500", "127.0.0.1 answers with error 500"),
        ("401", "127.0.0.1 does not accept the API key"),
        ("hang", "127.0.0.1 does not answer"),
        ("html", "127.0.0.1 does not answer as a W&B server does"),
        (None, None),
    ],
)
def test_an_unusable_server_is_found_out_before_the_training(
    server: Any, fault: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beyondpixel.experiments.tracking.SECONDS_FOR_AN_ANSWER", 1.0)
    server.fault = fault
    assert server_fault(server.environment["WANDB_BASE_URL"], "k" * 40) == said


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("moment", ["at its begin", "on its way"])
def test_a_run_goes_on_without_a_server_that_fails(server: Any, folder: RunFolder, tmp_path: Path, moment: str) -> None:
    """The server knows the key, but fails when a run is made, or when it has some steps."""
    online = environment(tmp_path, **server.environment)
    if moment == "at its begin":
        server.fault, server.fault_of = "500", "upsertBucket"
    process = start(folder, online, pause=0.02, limit=4)
    if moment == "on its way":
        while process.poll() is None and not (server.runs and folder.metrics_size > 600):
            time.sleep(0.01)
        server.fault = "500"
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert said.count("upload later with: beyondpixel sync") == 1
    assert "Traceback" not in said
    assert folder.status == "done"
    server.fault = None
    assert "uploaded" in sync(folder, online)
    assert_whole(server, folder)
