"""Many launchers at once over the same runs, and launchers that are killed."""

import io
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from beyondpixel.experiments.launch import local
from beyondpixel.experiments.launch.actions import choose_actions
from beyondpixel.experiments.launch.progress import Progress
from beyondpixel.experiments.plan import Run

LAUNCHERS = 64
KILLS = 50 if os.environ.get("BEYONDPIXEL_FAULTS") == "full" else 5
# what the real job does about its lock and its state, without a training
JOB = """
import json, os, sys, time
from pathlib import Path
from beyondpixel.experiments.launch.lock import HeldError, RunLock
from beyondpixel.experiments.run.folder import RunFolder
folder = Path(sys.argv[1])
try:
    with RunLock(folder / "lock"):
        RunFolder(folder).remove_temporary_files()
        state = json.loads((folder / "state.json").read_text())
        if state["status"] == "done":
            sys.exit(0)
        began = time.time()
        time.sleep(0.5)
        with (folder.parents[3] / "trained.jsonl").open("a") as file:
            file.write(json.dumps([folder.name, began, time.time(), os.getppid()]) + "\\n")
        temporary = folder / "state.json.new"
        temporary.write_text(json.dumps({**state, "status": "done"}))
        temporary.replace(folder / "state.json")
except HeldError:
    sys.exit(75)
"""


def launch_in_fork(runs: list[Run], begin: float = 0.0) -> int:
    """The process of a launcher."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            time.sleep(max(0.0, begin - time.time()))
            work = [(run, action) for run, action in zip(runs, choose_actions(runs), strict=True) if action.is_work]
            local.run_locally(work, [{}], Progress(runs, Console(file=io.StringIO())))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


@pytest.mark.usefixtures("quiet")
def test_sixty_four_launchers_train_each_of_six_runs_once(
    runs_of: Callable[..., list[Run]], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "job.py").write_text(JOB)
    monkeypatch.setattr(local, "COMMAND", (sys.executable, str(place / "job.py")))
    runs = runs_of(*range(1, 7))
    begin = time.time() + 2
    children = [launch_in_fork(runs, begin) for _ in range(LAUNCHERS)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * LAUNCHERS
    trained = [json.loads(line) for line in (place / "trained.jsonl").read_text().splitlines()]
    assert sorted(name for name, *_ in trained) == [f"seed{seed}" for seed in range(1, 7)]
    assert [run.folder.state["status"] for run in runs] == ["done"] * 6


@pytest.mark.usefixtures("quiet")
def test_the_same_command_finishes_what_a_killed_launcher_has_left(
    runs_of: Callable[..., list[Run]],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """Killed at any moment: while it prepares a folder, starts a process, or writes how a run ended."""
    (place / "job.py").write_text(JOB.replace("time.sleep(0.5)", "time.sleep(0.02)"))
    monkeypatch.setattr(local, "COMMAND", (sys.executable, str(place / "job.py")))
    monkeypatch.setattr(local, "POLL_INTERVAL_S", 0.01)
    runs = runs_of(*range(1, 2 * KILLS + 1))
    rng = random.Random(0)
    killed = 0
    for number in range(KILLS):
        launcher = launch_in_fork(runs[2 * number : 2 * number + 2])
        time.sleep(rng.uniform(0, 0.2))
        os.kill(launcher, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(launcher, 0)[1])
    deadline = time.monotonic() + 300
    while any(run.folder.state["status"] != "done" for run in runs) and time.monotonic() < deadline:
        assert os.waitpid(launch_in_fork(runs), 0)[1] == 0
    trained = [json.loads(line)[0] for line in (place / "trained.jsonl").read_text().splitlines()]
    assert sorted(trained) == sorted(f"seed{seed}" for seed in range(1, 2 * KILLS + 1))
    assert not list(place.rglob("*.part"))
    assert all(run.folder.config == run.config for run in runs)
    assert killed > 0
    record_property("tried", f"{killed} launchers killed")
