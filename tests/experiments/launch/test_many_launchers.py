"""Many launchers at once over the same runs."""

import io
import json
import os
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
# what the real job does about its lock and its state, without a training
JOB = """
import json, os, sys, time
from pathlib import Path
from beyondpixel.experiments.launch.lock import HeldError, RunLock
folder = Path(sys.argv[1])
try:
    with RunLock(folder / "lock"):
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


@pytest.mark.usefixtures("quiet")
def test_sixty_four_launchers_train_each_of_six_runs_once(
    runs_of: Callable[..., list[Run]], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "job.py").write_text(JOB)
    monkeypatch.setattr(local, "COMMAND", (sys.executable, str(place / "job.py")))
    runs = runs_of(*range(1, 7))
    start = time.time() + 2
    children = []
    for _ in range(LAUNCHERS):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                time.sleep(max(0.0, start - time.time()))
                work = [(run, action) for run, action in zip(runs, choose_actions(runs), strict=True) if action.is_work]
                local.run_locally(work, [{}], Progress(runs, Console(file=io.StringIO())))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * LAUNCHERS
    trained = [json.loads(line) for line in (place / "trained.jsonl").read_text().splitlines()]
    assert sorted(name for name, *_ in trained) == [f"seed{seed}" for seed in range(1, 7)]
    assert [run.folder.state["status"] for run in runs] == ["done"] * 6
