"""Arrays, preemption, time limits, cancelling: on a real SLURM of one node."""

import importlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.cells import Cell, expand
from beyondpixel.experiments.launch.launching import launch
from beyondpixel.experiments.launch.queue import living_jobs
from beyondpixel.experiments.launch.resources import Resources
from beyondpixel.experiments.launch.situations import situation_of
from beyondpixel.experiments.launch.slurm import submit
from beyondpixel.experiments.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
CPU = Resources(gpus=0, minutes=5, memory="100M")

# A cell that trains nothing and needs no torch: it counts steps, as a run does, and stops between two of them.
CHEAP_CELL = """
import json, os, signal, time
from beyondpixel.experiments.errors import Stopped
from beyondpixel.experiments.launch.lock import RunLock
from beyondpixel.experiments.run_folder import RunFolder

def run(path, *, patience=0):
    folder = RunFolder(path)
    asked = []
    submitits = signal.getsignal(signal.SIGUSR2)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: asked.append(signal.Signals(number)))
    with RunLock(folder.lock_file, patience=patience):
        first = folder.state.get("step", 0)
        start = {"time": time.time(), "step": first, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
        if "cannot" in folder.record:
            folder.update_state(status="failed")
            raise RuntimeError("it cannot")
        for step in range(first, folder.record.get("cheap_steps", 1)):
            time.sleep(0.1)
            folder.update_state(status="running", step=step + 1)
            if asked:
                break
        with (folder.path / "turns.jsonl").open("a") as file:
            file.write(json.dumps({**start, "ended": time.time(), "signals": [s.name for s in asked]}) + "\\n")
        signal.signal(signal.SIGUSR2, submitits)
        folder.update_state(status="interrupted" if asked else "done")
    if asked:
        raise Stopped(asked[0])
"""


@pytest.fixture(scope="module")
def cluster(slurm_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The cluster, and this process as one on it that has no W&B account."""
    home = tmp_path_factory.mktemp("home")
    (home / "cheap_cell.py").write_text(CHEAP_CELL)
    own = slurm_cluster.environment
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_", "WANDB_"))]:
            patch.delenv(name)
        changes = {
            "SLURM_CONF": own["SLURM_CONF"],
            "PATH": own["PATH"],
            "PYTHONPATH": f"{home}:{own.get('PYTHONPATH', '')}",
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
    run: Callable[..., None] = importlib.import_module("cheap_cell").run
    return run


@pytest.fixture(scope="module", autouse=True)
def overtime(cluster: Any, cheap: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, str]:
    """A cell that needs longer than its time limit; begun first, because a minute is the least that SLURM knows."""
    place = tmp_path_factory.mktemp("overtime")
    file = place / "tiny" / "ce.yaml"
    file.parent.mkdir()
    parts = {"model": "beyondpixel.lightning_modules.DeepLabModule", "data": "beyondpixel.datamodules.ShapesDataModule"}
    config = {part: {"class_path": path} for part, path in parts.items()}
    file.write_text(yaml.safe_dump({"config": config}))
    (cell,) = cells_of(place, 1, steps=470)
    resources = Resources(gpus=0, minutes=1, memory="100M")
    (job,) = submit([cell], resources, output=place / "outputs", say=print, run=cheap)
    return cell, job


def cells_of(place: Path, *seeds: int, steps: int = 10) -> list[Cell]:
    cells = expand([place / "tiny" / "ce.yaml"], seeds=seeds, output=place / "outputs", overrides={}, mistakes=[])
    for cell in cells:
        cell.folder.record = {"cheap_steps": steps}
    return cells


def turns(cell: Cell) -> list[dict[str, Any]]:
    file = cell.folder.path / "turns.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_until(condition: Callable[[], bool], seconds: float, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


def run_seconds(cell: Cell) -> None:
    wait_until(lambda: cell.folder.state.get("step", 0) >= 5, 60, lambda: said_by(cell))


def said_by(cell: Cell) -> str:
    logs = sorted((cell.folder.path.parents[2] / "slurm").rglob("*.err"))
    files = [cell.folder.log_file, *logs]
    return "\n".join(f"== {file}\n{file.read_text()}" for file in files if file.exists()) + str(cell.folder.state)


def test_an_array_of_cells_one_at_a_time_each_with_its_gpu(
    cluster: Any, cheap: Callable[..., None], place: Path
) -> None:
    cells = cells_of(place, 1, 2, 3)
    said: list[str] = []
    resources = Resources(gpus=1, minutes=5, memory="100M", max_parallel=1)
    jobs = submit(cells, resources, output=place / "outputs", say=said.append, run=cheap)
    assert [job.split("_")[1] for job in jobs] == ["0", "1", "2"]
    assert len({job.split("_")[0] for job in jobs}) == 1
    assert [cell.folder.state["job"] for cell in cells] == jobs
    assert any(f"scancel {jobs[0].split('_')[0]}" in line for line in said)

    # launched again, here or by somebody else: nothing is submitted twice
    assert set(jobs) <= set(living_jobs())
    assert situation_of(cells[2], jobs=living_jobs()).kind == "queued"
    again: list[str] = []
    assert submit([cells[2]], resources, output=place / "outputs", say=again.append, run=cheap) == []
    assert again == [f"{cells[2].name} is left alone: it is SLURM job {jobs[2]} already"]

    wait_until(lambda: all(cell.folder.state["status"] == "done" for cell in cells), 90, lambda: said_by(cells[0]))
    (first,), (second,), (third,) = (turns(cell) for cell in cells)
    assert first["ended"] < second["time"] < second["ended"] < third["time"]  # there are two GPUs, so two could run
    assert all(turn["gpus"] in ("0", "1") for turn in (first, second, third))
    assert situation_of(cells[0]).kind == "done"


def test_a_preempted_cell_comes_back_once_and_goes_on(cluster: Any, cheap: Callable[..., None], place: Path) -> None:
    (cell,) = cells_of(place, 1, steps=60)
    (job,) = submit([cell], Resources(gpus=1, minutes=5, memory="100M"), output=place / "outputs", say=print, run=cheap)
    run_seconds(cell)
    urgent = ["--job-name=urgent", "--partition=urgent", "--gpus=2", "--mem=100M", "--output=/dev/null"]
    cluster.run("sbatch", *urgent, "--wrap=sleep 1")
    wait_until(lambda: cell.folder.state["status"] == "done", 90, lambda: said_by(cell))
    before, after = turns(cell)
    assert before["signals"][0] == "SIGTERM"
    assert after["step"] >= 5  # it went on where it was
    assert after["signals"] == []
    cluster.wait_for_state(job, "COMPLETED")
    assert cluster.restarts(job) == 1


def test_a_requeue_by_the_administrator(cluster: Any, cheap: Callable[..., None], place: Path) -> None:
    (cell,) = cells_of(place, 1, steps=40)
    (job,) = submit([cell], CPU, output=place / "outputs", say=print, run=cheap)
    run_seconds(cell)
    cluster.run("scontrol", "requeue", job)
    wait_until(lambda: cell.folder.state["status"] == "done", 90, lambda: said_by(cell))
    assert [turn["signals"][:1] for turn in turns(cell)] == [["SIGTERM"], []]
    assert cluster.restarts(job) == 1


def test_evaluations_start_when_their_source_has_succeeded(
    cluster: Any, cheap: Callable[..., None], place: Path
) -> None:
    """However often that is requeued; if it fails, they do not wait for ever."""
    sources = cells_of(place, 1, 2, steps=30)
    sources[1].folder.record = {"cannot": True}
    text = 'evaluate: {run: tiny/ce, postprocess: "crf:1"}'
    rows = [place / "tiny" / f"crf{number}.yaml" for number in (1, 2)]
    for row in rows:
        row.write_text(text)
    evaluations = expand(rows, seeds=[1, 2], output=place / "outputs", overrides={}, mistakes=[])
    jobs = submit([*evaluations, *sources], CPU, output=place / "outputs", say=print, run=cheap)
    job = {cell.name: cell.folder.state["job"] for cell in (*evaluations, *sources)}
    assert sorted(job.values()) == sorted(jobs)
    assert situation_of(evaluations[0], jobs=living_jobs()).kind == "queued"
    run_seconds(sources[0])
    cluster.run("scontrol", "requeue", job["tiny/ce seed1"])
    for number in (1, 2):  # of the source that failed
        cancelled = job[f"tiny/crf{number} seed2"]
        wait_until(lambda job=cancelled: job not in living_jobs(), 60, lambda job=cancelled: cluster.state(job))
        assert cluster.state(cancelled) == "CANCELLED"
    fine = [cell for cell in evaluations if cell.seed == 1]
    wait_until(lambda: all(c.folder.state["status"] == "done" for c in fine), 90, lambda: said_by(fine[0]))
    assert len(turns(sources[0])) == 2
    assert all(turns(sources[0])[1]["ended"] < turn["time"] for cell in fine for turn in turns(cell))
    assert sum(len(turns(cell)) for cell in evaluations) == 2


def test_a_cancelled_cell_stays_away_and_is_resumed_by_the_next_launch(
    cluster: Any, cheap: Callable[..., None], place: Path
) -> None:
    cells = cells_of(place, 1, 2, steps=600)
    resources = Resources(gpus=0, minutes=5, memory="100M", max_parallel=1)
    jobs = submit(cells, resources, output=place / "outputs", say=print, run=cheap)
    run_seconds(cells[0])
    cluster.run("scancel", jobs[0].split("_")[0])
    wait_until(lambda: not set(jobs) & set(living_jobs()), 30, lambda: cluster.state(jobs[0]))
    assert cells[0].folder.state["status"] == "interrupted"
    assert cluster.state(jobs[0]).startswith("CANCELLED")
    assert cluster.restarts(jobs[0]) == 0
    assert cells[1].folder.state["status"] == "queued"  # it never began
    assert [situation_of(cell, jobs=living_jobs()).kind for cell in cells] == ["starts", "starts"]  # no checkpoint

    cells_of(place, 1, 2, steps=20)
    submit(cells, CPU, output=place / "outputs", say=print, run=cheap)
    wait_until(lambda: all(c.folder.state["status"] == "done" for c in cells), 60, lambda: said_by(cells[0]))
    assert turns(cells[0])[1]["step"] >= 5


def test_a_refused_job_leaves_everything_as_it_was(cluster: Any, cheap: Callable[..., None], place: Path) -> None:
    (cell,) = cells_of(place, 1)
    cell.folder.update_state(status="done", step=3)
    resources = Resources(gpus=0, memory="99999G")
    with pytest.raises(UserError, match=r"(?s)SLURM refused the job, and nothing was started:.*[Mm]emory"):
        submit([cell], resources, output=place / "outputs", say=print, run=cheap, overwrite=True)
    assert cell.folder.state == {"status": "done", "step": 3}
    with pytest.raises(UserError, match=r"--partition fast: SLURM has no such partition; it has main, urgent"):
        launch(
            [place / "tiny"], seeds=[1], output=place / "new", overrides={}, slurm=Resources(gpus=0, partition="fast")
        )
    assert not (place / "new").exists()


def test_a_real_training_on_two_processes_is_requeued_and_resumes(cluster: Any, place: Path) -> None:
    """Two tasks of one cell train together; SLURM's warning reaches them; W&B's second segment has the same id."""
    spec = place / "tiny" / "ce.yaml"
    words = {"trainer.max_steps": 30, "data.num_workers": 0, "data.batch_size": 2}
    resources = Resources(gpus=2, minutes=10, memory="4G")
    (cell,) = launch([spec], seeds=[1], output=place / "outputs", overrides=words, slurm=resources)
    folder = RunFolder(cell.folder.path)
    assert folder.config["trainer"]["devices"] == 2
    job = folder.state["job"]
    wait_until(lambda: sum("train/loss" in line for line in folder.metrics()) > 7, 120, lambda: said_by(cell))
    cluster.run("scancel", "--signal=USR2", job)
    wait_until(lambda: folder.state["status"] == "done", 180, lambda: said_by(cell))
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


def test_past_its_time_limit(cluster: Any, overtime: tuple[Cell, str]) -> None:
    """SLURM warns 15 seconds before the end, or up to 30 earlier; the 470 steps take 47 seconds at least."""
    cell, job = overtime
    wait_until(lambda: cell.folder.state["status"] == "done", 120, lambda: said_by(cell))
    before, after = turns(cell)
    assert before["signals"] == ["SIGUSR2"]
    assert after["step"] >= 50
    assert cluster.restarts(job) == 1
