"""Many runs on one machine: with processes that train nothing, so that only the launcher is tested."""

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
from typing import Any

import pytest
from rich.console import Console

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch import local
from beyondpixel.experiments.launch.actions import choose_actions
from beyondpixel.experiments.launch.local import Slot, make_slots, run_locally
from beyondpixel.experiments.launch.lock import RunLock
from beyondpixel.experiments.launch.progress import Progress
from beyondpixel.experiments.plan import Run
from beyondpixel.experiments.run.folder import Status

pytestmark = pytest.mark.usefixtures("quiet")

# what a run does is in the file that its seed names
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def state(**changes):
    (folder / "state.json").write_text(json.dumps(changes))
def stop(number, frame):
    state(status="stopped", step=5)
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
(folder / "began").write_text(json.dumps([time.time(), os.environ.get("CUDA_VISIBLE_DEVICES"),
                                         os.environ.get("OMP_NUM_THREADS")]))
print("hello from", folder.name)
exec(BEHAVIOR[folder.name])
(folder / "ended").write_text(repr(time.time()))
"""
DONE = "time.sleep(0.3); (folder / 'summary.json').write_text('{\"test/mIoU\": 0.375}'); state(status='done')"


@pytest.fixture
def fakes(runs_of: Callable[..., list[Run]], place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Run]]:
    """Makes runs whose processes do what the given lines say."""

    def make(*behaviors: str) -> list[Run]:
        seeds = range(1, len(behaviors) + 1)
        table = {f"seed{seed}": behavior for seed, behavior in zip(seeds, behaviors, strict=True)}
        (place / "fake.py").write_text(f"BEHAVIOR = {table!r}\n{FAKE}")
        monkeypatch.setattr(local, "COMMAND", (sys.executable, str(place / "fake.py")))
        monkeypatch.setattr(local, "POLL_INTERVAL_S", 0.02)
        return runs_of(*seeds)

    return make


def run_all(runs: list[Run], *slots: Slot, progress: Progress, overwrite: bool = False) -> None:
    actions = choose_actions(runs, overwrite=overwrite)
    run_locally(list(zip(runs, actions, strict=True)), slots or [{}], progress)


def progress_of(runs: list[Run]) -> tuple[Progress, io.StringIO]:
    said = io.StringIO()
    return Progress(runs, Console(file=said, width=200)), said


def span(run: Run) -> tuple[float, float]:
    began, *_ = eval((run.folder.path / "began").read_text().replace("null", "None"))
    return began, float((run.folder.path / "ended").read_text())


def test_as_many_at_a_time_as_there_are_slots_and_each_has_its_gpu(fakes: Callable[..., list[Run]]) -> None:
    four = fakes(*[DONE] * 4)
    progress, said = progress_of(four)
    run_all(four, {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"}, progress=progress)
    spans = [span(run) for run in four]
    together = [sum(began <= moment < ended for began, ended in spans) for moment, _ in spans]
    assert max(together) == 2
    seen = [(run.folder.path / "began").read_text() for run in four]
    assert [re.findall(r'"(\d)", ', text)[0] for text in seen[:2]] == ["0", "3"]
    assert progress.names(Status.DONE) == [run.name for run in four]
    lines = said.getvalue().splitlines()
    assert sum(line.startswith("tiny/ce seed2: running, process ") for line in lines) == 1
    assert lines.count("tiny/ce seed4: done; mIoU 37.5 %") == 1
    assert four[0].folder.log_file.read_text() == "hello from seed1\n"
    assert four[0].folder.config["seed_everything"] == 1


def test_a_failure_stops_no_other_and_says_why(fakes: Callable[..., list[Run]]) -> None:
    several = fakes(
        "state(status='failed', error='it rained'); sys.exit(1)",
        "print('no such thing', file=sys.stderr); sys.exit(1)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "sys.exit(75)",
        DONE,
        "state(status='failed', error='not finite'); os.kill(os.getpid(), signal.SIGKILL)",  # by Lightning
        "state(status='trained', error='no such layer'); sys.exit(1)",  # in an evaluation
    )
    progress, said = progress_of(several)
    run_all(several, progress=progress)
    rained, silent, killed, held, done, ended, evaluated = several
    assert progress.names(Status.FAILED) == [rained.name, silent.name, ended.name, evaluated.name]
    assert (ended.folder.state["error"], evaluated.folder.state["status"]) == ("not finite", "trained")
    assert progress.names(Status.STOPPED) == [killed.name]
    assert progress.names(Status.RUNNING) == [held.name]
    assert progress.names(Status.DONE) == [done.name]
    assert silent.folder.state["error"] == "ended with code 1: no such thing"
    assert killed.folder.status is Status.STOPPED  # so that the next launch resumes it
    for expected in ("seed1: failed; it rained", "seed3: stopped; killed by SIGKILL (out of memory?)"):
        assert expected in said.getvalue()
    assert f"its log: {rained.folder.log_file}" in said.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_stops_all_runs_and_waits_for_them(fakes: Callable[..., list[Run]], number: signal.Signals) -> None:
    three = fakes("time.sleep(60)", "time.sleep(60)", DONE)
    progress, said = progress_of(three)
    former = {one: signal.getsignal(one) for one in (signal.SIGINT, *local.KILLS)}
    # a shell's background jobs ignore Ctrl-C from the start, and those under nohup that the terminal was closed
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    given = {one: signal.getsignal(one) for one in former}

    def press() -> None:
        while not all((run.folder.path / "began").exists() for run in three[:2]):
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    threading.Thread(target=press, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_all(three, {}, {}, progress=progress)
        assert {one: signal.getsignal(one) for one in former} == given
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)
    assert [run.folder.state["status"] for run in three] == ["stopped", "stopped", "new"]
    assert progress.names(Status.STOPPED) == [run.name for run in three[:2]]
    assert "stopping 2 runs, each with a checkpoint; press Ctrl-C again to kill them" in said.getvalue()


def test_runs_survive_their_launcher(place: Path, fakes: Callable[..., list[Run]]) -> None:
    fakes("time.sleep(1); state(status='done')")
    code = f"""
    import sys
    from pathlib import Path
    from beyondpixel.experiments.launch import local
    from beyondpixel.experiments.launch.command import launch
    local.COMMAND = (sys.executable, {str(place / "fake.py")!r})
    launch([{str(place / "tiny" / "ce.yaml")!r}], output=Path("outputs"))
    """
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=place, stdout=subprocess.DEVNULL, start_new_session=True
    )
    folder = place / "outputs" / "tiny" / "ce" / "seed1"
    deadline = time.monotonic() + 120
    while not (folder / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(launcher.pid, signal.SIGKILL)  # the whole session of the terminal, as it were
    launcher.wait()
    while not (folder / "ended").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert '"done"' in (folder / "state.json").read_text()


def test_overwrite_removes_the_old_run_when_the_new_one_starts(fakes: Callable[..., list[Run]]) -> None:
    (run,) = fakes(DONE)
    run.folder.update_state(status="done")
    run.folder.append_metrics({"train/loss": 1.0}, step=1)
    run_all([run], progress=progress_of([run])[0], overwrite=True)
    assert list(run.folder.metrics()) == []
    assert run.folder.state["status"] == "done"


def test_a_run_that_another_launcher_has_is_left_alone(fakes: Callable[..., list[Run]]) -> None:
    """Even with --overwrite, and even if it was free when the plan was made."""
    several = fakes(DONE, DONE)
    progress, said = progress_of(several)
    several[0].folder.append_metrics({"train/loss": 1.0}, step=1)
    work = list(zip(several, choose_actions(several, overwrite=True), strict=True))
    with RunLock(several[0].folder.lock_file):
        run_locally(work, [{}], progress)
    assert len(list(several[0].folder.metrics())) == 1
    assert progress.names(Status.RUNNING) == [several[0].name]
    assert progress.names(Status.DONE) == [several[1].name]
    expected = f"seed1: running; {several[0].folder.path} is being worked on by process {os.getpid()}"
    assert expected in said.getvalue()


def test_a_full_disk_fails_one_run_and_the_same_command_finishes_it(
    fakes: Callable[..., list[Run]], tmp_path: Path
) -> None:
    """Of two runs the one whose folder lies on a disk that is full."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets a user mount no file system of a given size")
    full, _ = fakes(DONE, DONE)
    disk = full.folder.path
    disk.mkdir(parents=True)
    code = f"""
    import os, sys
    from pathlib import Path
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from rich.console import Console
    from beyondpixel.experiments.launch import local
    from beyondpixel.experiments.launch.actions import choose_actions
    from beyondpixel.experiments.launch.progress import Progress
    from beyondpixel.experiments.plan import plan_runs
    from beyondpixel.experiments.run.folder import RunFolder
    local.COMMAND = (sys.executable, {str(tmp_path / "fake.py")!r})
    place = Path({str(tmp_path)!r})
    disk = Path({str(disk)!r})
    runs = plan_runs([place / "tiny" / "ce.yaml"], seeds=[1, 2], output=place / "outputs", overrides={{}})
    (disk / ".last.ckpt.killed.part").write_bytes(bytes(8192))  # of an earlier process
    filler = (disk / "filler").open("wb", buffering=0)
    try:
        while filler.write(bytes(4096)):
            pass
    except OSError:
        pass
    for turn in range(2):
        progress = Progress(runs, Console(width=1000))
        work = [(run, action) for run, action in zip(runs, choose_actions(runs)) if action.is_work]
        local.run_locally(work, [{{}}], progress)
        print("STATES", [run.folder.state for run in runs], sorted(path.name for path in disk.iterdir()))
        os.truncate(disk / "filler", 0)
    """
    script = f'mount -t tmpfs -o size=64k tmpfs {disk} && exec {sys.executable} -c "$CODE"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        env={**os.environ, "CODE": textwrap.dedent(code)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    (first, second) = [line for line in lines if line.startswith("STATES")]
    assert re.search(
        rf"^tiny/ce seed1: failed; disk full: {disk}\S* could not be written, [\d,]+ bytes are free; make",
        done.stdout,
        re.MULTILINE,
    ), done.stdout + done.stderr
    assert any(line.startswith("tiny/ce seed2: done") for line in lines)
    assert re.search(r"'status': 'failed'.*'error': 'disk full.*'status': 'done'", first), first
    assert ".part" not in first
    assert second.count("'status': 'done'") == 2


def test_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = ["0", "1", "2", "3"]

    def devices(**options: Any) -> list[str | None]:
        return [slot.get("CUDA_VISIBLE_DEVICES") for slot in make_slots(**options)]

    assert devices(devices=gpus) == ["0", "1", "2", "3"]
    assert devices(gpus=2, devices=gpus) == ["0,1", "2,3"]
    assert devices(jobs=1, gpus=3, devices=gpus) == ["0,1,2"]
    assert devices(jobs=3, devices=["5"]) == ["5"] * 3  # they share it
    assert devices(gpus=0, devices=gpus) == [""]
    assert devices(gpus=0, jobs=2, devices=gpus) == ["", ""]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert make_slots(devices=[]) == [{}]
    assert make_slots(jobs=3, devices=[]) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # the user knows better
    assert make_slots(jobs=3, devices=[]) == [{"OMP_NUM_THREADS": "5"}] * 3
    with pytest.raises(UserError, match="--gpus 2: this machine has 0"):
        make_slots(gpus=2, devices=[])
    with pytest.raises(UserError, match="--gpus 5: this machine has 4"):
        make_slots(gpus=5, devices=gpus)


def test_a_terminal_shows_how_far_each_run_is(fakes: Callable[..., list[Run]]) -> None:
    many = fakes(*[DONE] * 20)
    said = io.StringIO()
    console = Console(file=said, width=200, height=60, force_terminal=True, color_system=None)
    progress = Progress(many, console)
    for run in many[:8]:
        progress.started(run, "process 1")
        progress.ended(run, Status.DONE, "")
    progress.started(many[8], "process 2")
    many[8].folder.update_state(status="running", step=200, max_steps=400)
    many[8].folder.summary = {"val/mIoU": 0.3125}
    progress.started(many[9], "process 3")
    progress.ended(many[9], Status.FAILED, "it rained [hard]")
    said.truncate(0)
    with progress:
        progress.refresh()
    text = " ".join(said.getvalue().split())
    assert "9/20 10 new, 1 running, 1 failed, 8 done" in text
    assert re.search(r"seed9 .*200/400 mIoU 31\.2 %", text), text
    assert "seed8 " not in text  # of those that go on only
    assert "seed20" not in text


def test_once_a_minute_a_line_says_how_far_each_run_is(
    fakes: Callable[..., list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (run, *_) = several = fakes(DONE, DONE)
    progress, said = progress_of(several)
    progress.started(run, "process 1")
    progress.refresh()
    monkeypatch.setattr("beyondpixel.experiments.launch.progress.SECONDS_BETWEEN_LINES", -1.0)
    progress.refresh()
    run.folder.update_state(status="running", step=100, max_steps=400)
    run.folder.summary = {"val/mIoU": 0.25}
    progress.refresh()
    assert said.getvalue().splitlines()[1:] == [
        "tiny/ce seed1: initializing",
        "tiny/ce seed1: step 100/400, mIoU 25.0 %",
    ]


def test_runs_do_not_inherit_the_allocation_that_their_launcher_is_in(
    fakes: Callable[..., list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "PMIX_RANK", "LOCAL_RANK", "SUBMITIT_EXECUTOR"):
        monkeypatch.setenv(name, "1")
    for name in ("SLURM_CONF", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "kept")
    (run,) = fakes("print(sorted(n for n in os.environ if n.startswith(('SL', 'SB', 'PM', 'LOCAL', 'SUB'))))\n" + DONE)
    run_all([run], progress=progress_of([run])[0])
    assert "['SBATCH_ACCOUNT', 'SLURM_CONF']" in run.folder.log_file.read_text()
