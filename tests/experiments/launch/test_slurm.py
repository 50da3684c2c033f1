"""Arrays, preemption, time limits, cancelling: on a real SLURM of one node."""

import importlib
import json
import os
import random
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml

from beyondpixel.experiments import cli
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch import slurm
from beyondpixel.experiments.launch.actions import Action, choose_actions
from beyondpixel.experiments.launch.command import launch
from beyondpixel.experiments.launch.options import CLUSTER_KEYS, LISTS, read_options, submission_parameters
from beyondpixel.experiments.launch.queue import Queue
from beyondpixel.experiments.launch.slurm import submit
from beyondpixel.experiments.plan import Run, plan_runs
from beyondpixel.experiments.run.folder import RunFolder, Status

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


def asked(**options: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {name: () if name in LISTS else None for name in (*CLUSTER_KEYS, "jobs")}
    small = {"executor": "slurm", "gpus": 0, "time": "5", "mem": "1G"}
    return submission_parameters(read_options({**nothing, **small, **options}, None))


CPU = asked()


# A job that trains nothing and needs no torch: it counts steps, as a run does, and stops between two of them.
CHEAP_JOB = """
import json, os, signal, time
from beyondpixel.experiments.errors import Stopped
from beyondpixel.experiments.launch.lock import RunLock
from beyondpixel.experiments.run.folder import RunFolder

def job(path, *, patience=0):
    folder = RunFolder(path)
    asked = []
    submitits = signal.getsignal(signal.SIGUSR2)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: asked.append(signal.Signals(number)))
    with RunLock(folder.lock_file, patience=patience):
        first = folder.state.get("step") or 0
        variables = [os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "SET_UP", "LEAKED", "SLURM_JOB_NAME")]
        start = {"time": time.time(), "step": first, "variables": variables}
        for step in range(first, folder.record.get("cheap_steps", 1)):
            time.sleep(0.1)
            taken = b"1" * folder.record.get("cheap_bytes", 0)
            folder.update_state(status="running", step=step + 1)
            if asked:
                break
        with (folder.path / "turns.jsonl").open("a") as file:
            file.write(json.dumps({**start, "ended": time.time(), "signals": [s.name for s in asked]}) + "\\n")
        signal.signal(signal.SIGUSR2, submitits)
        folder.update_state(status="stopped" if asked else "done")
    if asked:
        raise Stopped(asked[0].name)
"""


@pytest.fixture(scope="module")
def cluster(slurm_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The cluster, and this process as one on it that has no W&B account."""
    home = tmp_path_factory.mktemp("home")
    (home / "cheap_job.py").write_text(CHEAP_JOB)
    own = slurm_cluster.environment
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_", "WANDB_"))]:
            patch.delenv(name)
        changes = {
            "SLURM_CONF": own["SLURM_CONF"],
            "PATH": own["PATH"],
            "PYTHONPATH": os.pathsep.join(filter(None, [str(home), own.get("PYTHONPATH")])),
            "MPLCONFIGDIR": matplotlib.get_configdir(),
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
        }
        for name, value in changes.items():
            patch.setenv(name, value)
        patch.syspath_prepend(str(home))
        yield slurm_cluster


@pytest.fixture(scope="module")
def cheap(cluster: Any) -> Callable[..., None]:
    job: Callable[..., None] = importlib.import_module("cheap_job").job
    return job


@pytest.fixture(scope="module", autouse=True)
def overtime(cluster: Any, cheap: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A run that needs longer than its time limit; begun first, because a minute is the least that SLURM knows."""
    place = tmp_path_factory.mktemp("overtime")
    file = place / "tiny" / "ce.yaml"
    file.parent.mkdir()
    parts = {"model": "beyondpixel.lightning_modules.DeepLabModule", "data": "beyondpixel.datamodules.ShapesDataModule"}
    config = {part: {"class_path": path} for part, path in parts.items()}
    file.write_text(yaml.safe_dump({"config": config}))
    (run,) = make_runs(place, 1, steps=470)
    (job,) = submit_all([run], asked(time="1"), job=cheap)
    return run, job


def make_runs(place: Path, *seeds: int, steps: int = 10) -> list[Run]:
    runs = plan_runs([place / "tiny" / "ce.yaml"], seeds=seeds, output=place / "outputs", overrides={})
    for run in runs:
        run.folder.record = {"cheap_steps": steps}
    return runs


def submit_all(
    runs: list[Run], parameters: dict[str, Any], *, say: Callable[[str], None] = print, **options: Any
) -> list[str]:
    """Submit what there is to do; the numbers of the arrays."""
    work = [(run, action) for run, action in zip(runs, choose_actions(runs), strict=True) if action.is_work]
    return submit(work, parameters, output=runs[0].folder.path.parents[2], say=say, **options)


def turns(run: Run) -> list[dict[str, Any]]:
    file = run.folder.path / "turns.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_until(condition: Callable[[], bool], seconds: float, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


def wait_until_done(runs: list[Run], seconds: float = 90) -> None:
    wait_until(lambda: all(run.folder.status is Status.DONE for run in runs), seconds, lambda: said_by(runs[0]))


def wait_until_it_steps(run: Run) -> None:
    wait_until(lambda: (run.folder.state.get("step") or 0) >= 5, 60, lambda: said_by(run))


def said_by(run: Run) -> str:
    logs = sorted((run.folder.path.parents[2] / "slurm").rglob("*.err"))
    files = [run.folder.log_file, *logs]
    return "\n".join(f"== {file}\n{file.read_text()}" for file in files if file.exists()) + str(run.folder.state)


def is_living(job: str) -> bool:
    return Queue().living(job) is not None


def test_an_array_of_runs_one_at_a_time_each_with_its_gpu(
    cluster: Any, cheap: Callable[..., None], place: Path
) -> None:
    runs = make_runs(place, 1, 2, 3)
    said: list[str] = []
    parameters = asked(gpus=1, setup=["export SET_UP=yes"])
    (array,) = submit_all(runs, parameters, say=said.append, max_parallel=1, job=cheap)
    jobs = [run.folder.state["job"] for run in runs]
    assert jobs == [f"{array}_{index}" for index in range(3)]
    assert any(f"scancel {array}" in line for line in said)

    # launched again, here or by somebody else: nothing is submitted twice
    (action,) = choose_actions(runs[2:])
    assert (action.kind, action.reason.startswith(f"queued, SLURM job {jobs[2]}, ")) == ("leave", True)
    again: list[str] = []
    (other,) = submit(
        [(runs[2], Action("start", seen={"status": "new"}))],
        parameters,
        output=place / "outputs",
        say=again.append,
        job=cheap,
    )
    assert again[0].startswith(f"{runs[2].name} is left alone: {runs[2].folder.path} is being worked on by")
    wait_until(lambda: not is_living(other), 30, lambda: cluster.state(other))
    assert runs[2].folder.state["job"] == jobs[2]

    wait_until_done(runs)
    (first,), (second,), (third,) = (turns(run) for run in runs)
    assert first["ended"] < second["time"] < second["ended"] < third["time"]  # there are two GPUs, so two could run
    for turn in (first, second, third):
        gpu, set_up, *_ = turn["variables"]
        assert (gpu in ("0", "1"), set_up) == (True, "yes")
    assert [action.kind for action in choose_actions(runs[:1])] == ["keep"]


def test_forty_runs_in_arrays_of_sixteen_with_five_kills(
    cluster: Any, cheap: Callable[..., None], place: Path, record_property: Callable[[str, object], None]
) -> None:
    """Killed without warning at random moments; the same submission again finishes them."""
    runs = make_runs(place, *range(1, 41), steps=6)
    arrays = submit_all(runs, CPU, max_parallel=4, job=cheap)
    assert len(arrays) == 3
    numbers = [run.folder.state["job"] for run in runs]
    assert [sum(number.startswith(f"{array}_") for number in numbers) for array in arrays] == [16, 16, 8]
    chosen = random.Random(1)
    killed: set[str] = set()
    most = 0
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and not all(run.folder.status is Status.DONE for run in runs):
        going = [
            line.split("|")[0] for line in cluster.run("squeue", "-h", "-r", "-t", "R", "-o", "%i|%T").splitlines()
        ]
        going = [number for number in going if number in numbers]
        most = max(most, len(going))
        if len(killed) < 5 and going and chosen.random() < 0.3:
            victim = chosen.choice(going)
            killed.add(victim)
            cluster.run("scancel", "--signal=KILL", "--full", victim, check=False)
        elif not going and not any(is_living(array_job) for array_job in numbers):
            submit_all(runs, CPU, max_parallel=4, job=cheap)
            numbers = [run.folder.state["job"] for run in runs]
        time.sleep(0.3)
    wait_until_done(runs, 1)
    assert len(killed) == 5
    assert most <= 4
    assert all(turns(run)[-1]["signals"] == [] for run in runs)
    record_property("tried", f"{len(runs)} runs in {len(arrays)} arrays, {len(killed)} kills")


def test_a_preempted_run_comes_back_once_and_goes_on(cluster: Any, cheap: Callable[..., None], place: Path) -> None:
    (run,) = make_runs(place, 1, steps=60)
    (job,) = submit_all([run], asked(gpus=1), job=cheap)
    wait_until_it_steps(run)
    urgent = ["--job-name=urgent", "--partition=urgent", "--gpus=2", "--mem=1G", "--output=/dev/null"]
    cluster.run("sbatch", *urgent, "--wrap=sleep 1")
    wait_until_done([run])
    before, after = turns(run)
    assert before["signals"][0] == "SIGTERM"
    assert after["step"] >= 5  # it went on where it was
    assert after["signals"] == []
    cluster.wait_for_state(job, "COMPLETED")
    assert cluster.restarts(job) == 1


def test_a_requeue_by_the_administrator(cluster: Any, cheap: Callable[..., None], place: Path) -> None:
    (run,) = make_runs(place, 1, steps=40)
    (job,) = submit_all([run], CPU, job=cheap)
    wait_until_it_steps(run)
    cluster.run("scontrol", "requeue", job)
    wait_until_done([run])
    assert [turn["signals"][:1] for turn in turns(run)] == [["SIGTERM"], []]
    assert cluster.restarts(job) == 1


def test_a_cancelled_run_stays_away_and_is_resumed_by_the_next_launch(
    cluster: Any, cheap: Callable[..., None], place: Path
) -> None:
    runs = make_runs(place, 1, 2, steps=600)
    (array,) = submit_all(runs, CPU, max_parallel=1, job=cheap)
    job = runs[0].folder.state["job"]
    wait_until_it_steps(runs[0])
    cluster.run("scancel", array)
    wait_until(lambda: not any(is_living(run.folder.state["job"]) for run in runs), 30, lambda: cluster.state(array))
    assert runs[0].folder.state["status"] == "stopped"
    assert cluster.state(job).startswith("CANCELLED")
    assert cluster.restarts(job) == 0
    assert runs[1].folder.state["status"] == "queued"  # it never began
    assert [action.kind for action in choose_actions(runs)] == ["start", "start"]  # no checkpoint

    for run in runs:
        run.folder.record = {**run.folder.record, "cheap_steps": 20}
    submit_all(runs, CPU, job=cheap)
    wait_until_done(runs)
    assert turns(runs[0])[1]["step"] >= 5


def test_a_refused_job_leaves_everything_as_it_was(cluster: Any, cheap: Callable[..., None], place: Path) -> None:
    (run,) = make_runs(place, 1)
    run.folder.update_state(status="done", step=3)
    work = [(run, Action("replace", seen=run.folder.state))]
    with pytest.raises(UserError, match=r"(?s)SLURM refused a job of 1 runs: .*[Mm]emory.*; nothing was started"):
        submit(work, asked(mem="99999G"), output=place / "outputs", say=print, job=cheap)
    assert run.folder.state == {"status": "done", "step": 3}
    with pytest.raises(UserError, match=r"--partition fast: SLURM has no such partition; it has main, urgent"):
        launch([str(place / "tiny")], output=place / "new", executor="slurm", gpus=0, partition="fast")
    assert not (place / "new").exists()


def test_jobs_that_slurm_does_not_release_are_told_with_the_command_that_does(
    cluster: Any, cheap: Callable[..., None], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = make_runs(place, 1)
    told: list[str] = []
    ask = slurm.ask
    monkeypatch.setattr(slurm, "ask", lambda *words: None if words[:2] == ("scontrol", "update") else ask(*words))
    (array,) = submit_all([run], CPU, job=cheap, say=told.append)
    release = f"scontrol update JobId={array} StartTime=now"
    assert f"SLURM did not change the jobs' start time: they start in an hour, or after: {release}" in told
    assert run.folder.status is Status.QUEUED
    subprocess.run(release.split(), check=True)
    wait_until_done([run])


def test_a_job_that_dies_before_python_is_shown_as_failed(
    cluster: Any, cheap: Callable[..., None], place: Path
) -> None:
    runs = make_runs(place, 1, 2)
    submit_all(runs[:1], asked(setup=["module load cuda/99 || exit 3"]), job=cheap)
    submit_all(runs[1:], asked(srun=["--no-such-option"]), job=cheap)
    wait_until(lambda: not any(is_living(run.folder.state["job"]) for run in runs), 60, lambda: said_by(runs[0]))
    module, option = choose_actions(runs)
    for run, action, said in ((runs[0], module, "module: .*not found"), (runs[1], option, "no-such-option")):
        assert action.kind == "failed"
        expected = rf"^SLURM job {run.folder.state['job']} ended before the run began: .*{said}.*_0_log\.err\)$"
        assert re.search(expected, action.reason), action.reason
    with pytest.raises(UserError, match=r"2 runs failed in an earlier launch and were left alone"):
        launch([str(place / "tiny" / "ce.yaml")], seeds=[1, 2], output=place / "outputs", executor="slurm", gpus=0)
    assert runs[0].folder.state["error"] == module.reason
    assert [action.kind for action in choose_actions(runs, retry_failed=True)] == ["start", "start"]


def test_a_run_that_ran_out_of_memory_is_failed(cluster: Any, cheap: Callable[..., None], place: Path) -> None:
    (run,) = make_runs(place, 1, steps=1000)
    run.folder.record = {**run.folder.record, "cheap_bytes": 10**9}
    (job,) = submit_all([run], asked(mem="500M"), job=cheap)
    wait_until(lambda: not is_living(run.folder.state["job"]), 60, lambda: said_by(run))
    (action,) = choose_actions([run])
    number = run.folder.state["job"]
    assert (action.kind, action.reason) == (
        "failed",
        f"out of memory in SLURM job {number}: give more with --mem, or lower data.batch_size",
    )
    assert cluster.restarts(job) == 0


def test_a_held_job_is_named_with_the_remedy(cluster: Any, cheap: Callable[..., None], place: Path) -> None:
    (run,) = make_runs(place, 1)
    said: list[str] = []

    def killed(text: str) -> None:  # between the submission and the start
        said.append(text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit_all([run], CPU, say=killed, job=cheap)
    wait_until(lambda: not is_living(run.folder.state["job"]), 30, lambda: cluster.state(run.folder.state["job"]))
    (job,) = submit_all([run], asked(sbatch=["begin=now+1hour"]), job=cheap)
    cluster.run("scontrol", "uhold", job)
    (action,) = choose_actions([run])
    assert action.reason == f"queued, SLURM job {job} is held (JobHeldUser); release it with: scontrol release {job}"
    cluster.run("scancel", job)


@pytest.mark.parametrize("name", ["bash", "jupyter"])
def test_from_inside_an_allocation(cluster: Any, place: Path, name: str) -> None:
    """`salloc` and a notebook: a launch there runs here or submits, without what belongs to the allocation."""
    (run, here) = make_runs(place, 1, 2, steps=3)
    code = f"""
    import os, subprocess, sys
    from pathlib import Path
    from beyondpixel.experiments.launch import local
    from beyondpixel.experiments.launch.actions import choose_actions
    from beyondpixel.experiments.launch.progress import Progress
    from beyondpixel.experiments.launch.options import CLUSTER_KEYS, LISTS, read_options, submission_parameters
    from beyondpixel.experiments.launch.slurm import submit
    from beyondpixel.experiments.plan import plan_runs
    from rich.console import Console
    from cheap_job import job
    assert os.environ["SLURM_JOB_NAME"] == {name!r}, dict(os.environ)
    place = Path({str(place)!r})
    runs = plan_runs([place / "tiny" / "ce.yaml"], seeds=[1, 2], output=place / "outputs", overrides={{}})
    work = list(zip(runs, choose_actions(runs)))
    submit(work[:1], {CPU!r}, output=place / "outputs", say=print, job=job)
    assert os.environ["SLURM_JOB_NAME"] == {name!r}
    local.COMMAND = (sys.executable, "-c", "import sys, cheap_job; cheap_job.job(sys.argv[1])")
    local.run_locally(work[1:], [{{}}], Progress(runs, Console()))
    """
    command = ["salloc", f"--job-name={name}", "--gpus=1", "--mem=1G", sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until_done([run, here])
    assert turns(run)[0]["variables"][3].startswith("beyondpixel-")
    assert turns(here)[0]["variables"][3] is None


def test_a_real_training_on_two_processes_is_requeued_and_resumes(
    cluster: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks of one run train together; SLURM's warning reaches them; W&B's second segment has the same id."""
    monkeypatch.chdir(place)
    (place / "queue.py").write_text("raise ImportError('the file of the current folder instead of the module')")
    options = ["--executor", "slurm", "--gpus", "2", "--time", "10", "--mem", "4G", "--output", str(place / "outputs")]
    words = ["--trainer.max_steps", "30", "--data.num_workers", "0", "--data.batch_size", "4"]
    cli.main(["launch", str(place / "tiny" / "ce.yaml"), *options, *words])
    (run,) = plan_runs([place / "tiny" / "ce.yaml"], seeds=[1], output=place / "outputs", overrides={})
    folder = RunFolder(run.folder.path)
    assert folder.config["trainer"]["devices"] == 2
    job = folder.state["job"]
    wait_until(lambda: sum("train/loss" in line for line in folder.metrics()) > 7, 300, lambda: said_by(run))
    cluster.run("scancel", "--signal=USR2", job)
    wait_until(lambda: folder.state["status"] == "done", 400, lambda: said_by(run))
    assert cluster.restarts(job) == 1
    log = folder.log_file.read_text()
    assert "SIGUSR2: stopping after this step, with a checkpoint" in log
    assert "Restored all states from the checkpoint" in log
    assert log.count("MEMBER: 1/2") == 2
    steps = [line["step"] for line in folder.metrics() if "train/loss" in line]
    assert steps == list(range(30))
    segments = list(folder.path.glob("wandb/offline-run-*"))
    assert len(segments) == 2
    assert {segment.name.rsplit("-", 1)[1] for segment in segments} == {folder.record["wandb_id"]}


def test_past_its_time_limit(cluster: Any, overtime: tuple[Run, str]) -> None:
    """SLURM warns 15 seconds before the end, or up to 30 earlier; the 470 steps take 47 seconds at least."""
    run, job = overtime
    wait_until_done([run], 400)
    *before, last = turns(run)  # two, or more on a slow machine
    assert before
    assert all(turn["signals"] == ["SIGUSR2"] for turn in before)
    assert last["signals"] == []
    assert last["step"] >= 50
    assert cluster.restarts(job) == len(before)
