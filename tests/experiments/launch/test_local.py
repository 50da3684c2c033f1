"""Many cells on one machine: with processes that train nothing, so that only the launcher is tested."""

import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch import local
from beyondpixel.experiments.launch.cells import Cell, expand
from beyondpixel.experiments.launch.local import Slot, make_slots, run_locally
from beyondpixel.experiments.launch.lock import RunLock
from beyondpixel.experiments.launch.view import View

pytestmark = pytest.mark.usefixtures("quiet")

# what a cell does is in the file that its seed names
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def state(**changes):
    (folder / "state.json").write_text(json.dumps(changes))
def stop(number, frame):
    state(status="interrupted", step=5)
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
(folder / "began").write_text(json.dumps([time.time(), os.environ.get("CUDA_VISIBLE_DEVICES"),
                                         os.environ.get("OMP_NUM_THREADS")]))
print("hello from", folder.name)
exec(BEHAVIOUR[folder.name])
(folder / "ended").write_text(repr(time.time()))
"""
DONE = "time.sleep(0.3); (folder / 'summary.json').write_text('{\"test/mIoU\": 0.375}'); state(status='done')"


@pytest.fixture
def cells(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Cell]]:
    def make(*behaviours: str) -> list[Cell]:
        seeds = range(1, len(behaviours) + 1)
        table = {f"seed{seed}": behaviour for seed, behaviour in zip(seeds, behaviours, strict=True)}
        (place / "fake.py").write_text(f"BEHAVIOUR = {table!r}\n{FAKE}")
        monkeypatch.setattr(local, "COMMAND", (sys.executable, str(place / "fake.py")))
        monkeypatch.setattr(local, "SECONDS_BETWEEN_LOOKS", 0.02)
        return expand([place / "tiny" / "ce.yaml"], seeds=seeds, output=place / "outputs", overrides={}, mistakes=[])

    return make


def view_of(cells: list[Cell]) -> tuple[View, io.StringIO]:
    said = io.StringIO()
    return View(cells, Console(file=said, width=200)), said


def span(cell: Cell) -> tuple[float, float]:
    began, *_ = eval((cell.folder.path / "began").read_text().replace("null", "None"))
    return began, float((cell.folder.path / "ended").read_text())


def test_as_many_at_a_time_as_there_are_slots_and_each_has_its_gpu(cells: Callable[..., list[Cell]]) -> None:
    four = cells(*[DONE] * 4)
    view, said = view_of(four)
    run_locally(four, [Slot(("0",)), Slot(("3",))], view)
    spans = [span(cell) for cell in four]
    together = [sum(began <= moment < ended for began, ended in spans) for moment, _ in spans]
    assert max(together) == 2
    seen = [(cell.folder.path / "began").read_text() for cell in four]
    assert [re.findall(r'"(\d)", ', text)[0] for text in seen[:2]] == ["0", "3"]
    assert view.of("done") == four
    lines = said.getvalue().splitlines()
    assert sum(line.startswith("tiny/ce seed2 runs (process ") for line in lines) == 1
    assert lines.count("tiny/ce seed4 is done, mIoU 37.5 %") == 1
    assert four[0].folder.log_file.read_text() == "hello from seed1\n"
    assert four[0].folder.config["seed_everything"] == 1


def test_a_failure_stops_no_other_and_says_why(cells: Callable[..., list[Cell]]) -> None:
    several = cells(
        "state(status='failed', error='it rained'); sys.exit(1)",
        "print('no such thing', file=sys.stderr); sys.exit(1)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "sys.exit(75)",
        DONE,
    )
    view, said = view_of(several)
    run_locally(several, [Slot()], view)
    rained, silent, killed, held, done = several
    assert view.of("failed") == [rained, silent]
    assert view.of("stopped") == [killed]
    assert view.of("elsewhere") == [held]
    assert view.of("done") == [done]
    assert silent.folder.state["error"] == "ended with code 1: no such thing"
    assert killed.folder.state["status"] == "interrupted"  # so that the next launch resumes it
    for expected in ("seed1 failed: it rained", "seed3 stopped: killed by SIGKILL (out of memory?)"):
        assert expected in said.getvalue()
    assert f"its log: {rained.folder.log_file}" in said.getvalue()


def test_ctrl_c_stops_all_cells_and_waits_for_them(cells: Callable[..., list[Cell]]) -> None:
    three = cells("time.sleep(60)", "time.sleep(60)", DONE)
    view, said = view_of(three)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it

    def press() -> None:
        while not all((cell.folder.path / "began").exists() for cell in three[:2]):
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_locally(three, [Slot(), Slot()], view)
    assert [cell.folder.state["status"] for cell in three] == ["interrupted", "interrupted", "new"]
    assert view.of("stopped") == three[:2]
    assert "stopping 2 runs, each with a checkpoint; press Ctrl-C again to kill them" in said.getvalue()


def test_cells_survive_their_launcher(place: Path, cells: Callable[..., list[Cell]]) -> None:
    cells("time.sleep(1); state(status='done')")
    code = f"""
    import os, sys
    from pathlib import Path
    from beyondpixel.experiments.launch import local
    from rich.console import Console
    from beyondpixel.experiments.launch.cells import expand
    from beyondpixel.experiments.launch.view import View
    local.COMMAND = (sys.executable, {str(place / "fake.py")!r})
    spec, output = {str(place / "tiny" / "ce.yaml")!r}, Path("outputs")
    cells = expand([spec], seeds=[1], output=output, overrides={{}}, mistakes=[])
    local.run_locally(cells, [local.Slot()], View(cells, Console()))
    """
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=place, stdout=subprocess.DEVNULL, start_new_session=True
    )
    folder = place / "outputs" / "tiny" / "ce" / "seed1"
    deadline = time.monotonic() + 60
    while not (folder / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(launcher.pid, signal.SIGKILL)  # the whole session of the terminal, as it were
    launcher.wait()
    while not (folder / "ended").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert '"done"' in (folder / "state.json").read_text()


def test_overwrite_removes_the_old_run_when_the_new_one_starts(cells: Callable[..., list[Cell]]) -> None:
    (cell,) = cells(DONE)
    cell.folder.update_state(status="done")
    cell.folder.append_metrics({"train/loss": 1.0}, step=1)
    run_locally([cell], [Slot()], view_of([cell])[0], overwrite=True)
    assert list(cell.folder.metrics()) == []
    assert cell.folder.state["status"] == "done"


def test_a_run_that_another_launcher_has_is_left_alone(cells: Callable[..., list[Cell]]) -> None:
    """Even with --overwrite, and even if it was free when the plan was made."""
    several = cells(DONE, DONE)
    view, said = view_of(several)
    several[0].folder.append_metrics({"train/loss": 1.0}, step=1)
    with RunLock(several[0].folder.lock_file):
        run_locally(several, [Slot()], view, overwrite=True)
    assert len(list(several[0].folder.metrics())) == 1
    assert view.of("elsewhere") == several[:1]
    assert view.of("done") == several[1:]
    assert (
        f"seed1 is left alone: {several[0].folder.path} is being worked on by process {os.getpid()}" in said.getvalue()
    )


def test_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = ["0", "1", "2", "3"]
    assert [slot.devices for slot in make_slots(devices=gpus)] == [("0",), ("1",), ("2",), ("3",)]
    assert [slot.devices for slot in make_slots(gpus=2, devices=gpus)] == [("0", "1"), ("2", "3")]
    assert [slot.devices for slot in make_slots(jobs=1, gpus=3, devices=gpus)] == [("0", "1", "2")]
    assert [slot.devices for slot in make_slots(jobs=3, devices=["5"])] == [("5",)] * 3  # they share it
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert make_slots(devices=[]) == [Slot()]
    assert make_slots(jobs=3, devices=[]) == [Slot(threads=2)] * 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert Slot(threads=2).environment()["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # the user knows better
    assert Slot(threads=2).environment()["OMP_NUM_THREADS"] == "5"
    with pytest.raises(UserError, match="--gpus 2: this machine has no GPU"):
        make_slots(gpus=2, devices=[])
    with pytest.raises(UserError, match="--gpus 5: this machine has 4"):
        make_slots(gpus=5, devices=gpus)


def test_the_live_table_says_how_far_each_run_is(cells: Callable[..., list[Cell]]) -> None:
    many = cells(*[DONE] * 20)
    said = io.StringIO()
    console = Console(file=said, width=150, height=60, force_terminal=True, color_system=None)
    view = View(many, console)
    for cell in many[:8]:
        view.started(cell, "process 1")
        view.ended(cell, "done", "")
    view.started(many[8], "process 2")
    many[8].folder.update_state(status="running", step=100, max_steps=400)
    view.table()
    many[8].folder.update_state(step=200)
    many[8].folder.summary = {"val/mIoU": 0.3125}
    view.started(many[9], "process 3")
    view.ended(many[9], "failed", "it rained [hard]")
    view.console.print(view.table())
    text = said.getvalue()
    assert "8 done, 1 running, 10 waiting, 1 failed" in text
    (line,) = [line for line in text.splitlines() if "seed9 " in line]
    assert re.search(r"runs +│ 200/400 +│ 31\.2 +│ \d+ s +│ process 2", line), line
    assert "it rained [hard]" in text
    assert "seed20" not in text  # ten wait; five of them are shown
    assert "seed15" in text
