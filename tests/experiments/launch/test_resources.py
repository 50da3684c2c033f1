"""What needs no cluster: resources, time limits, and when a job is not to come back."""

import time
from pathlib import Path

import pytest

from beyondpixel.experiments import cli
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.resources import Resources, minutes_of
from beyondpixel.experiments.launch.slurm_job import SlurmCell
from beyondpixel.experiments.run_folder import RunFolder


def test_time_limits_are_read_as_slurm_writes_them() -> None:
    assert [minutes_of(text) for text in ("90", "4:00:00", "1-0", "1-2:30", "0:30")] == [90, 240, 1440, 1590, 1]
    for wrong in ("", "4h", "1:2:3:4", "0", "-5"):
        with pytest.raises(UserError, match="--time"):
            minutes_of(wrong)


def test_resources_of_one_device_leave_the_config_alone() -> None:
    assert Resources().devices() == {}
    assert Resources(gpus=0).devices() == {}
    assert Resources(gpus=4).devices() == {"trainer.devices": 4, "trainer.num_nodes": 1}
    assert Resources(gpus=1, nodes=2).devices() == {"trainer.devices": 1, "trainer.num_nodes": 2}
    assert Resources(gpus=0, nodes=2).devices() == {"trainer.devices": 1, "trainer.num_nodes": 2}


def test_what_sbatch_is_asked_for() -> None:
    parameters = Resources(gpus=4, nodes=2, minutes=60, max_parallel=3, options={"account": "vision"}).parameters("n")
    assert (parameters["ntasks_per_node"], parameters["gpus_per_node"], parameters["nodes"]) == (4, 4, 2)
    assert (parameters["time"], parameters["array_parallelism"]) == (60, 3)
    assert parameters["additional_parameters"] == {"requeue": True, "account": "vision"}
    assert parameters["signal_delay_s"] == 120
    assert "gpus_per_node" not in Resources(gpus=0).parameters("n")
    assert Resources(minutes=1).parameters("n")["signal_delay_s"] == 15


@pytest.mark.parametrize(("step", "minutes_ago", "comes_back"), [(0, 9, False), (5, 9, True), (0, 1, True)])
def test_a_job_that_finished_no_step_in_its_time_does_not_come_back(
    tmp_path: Path, step: int, minutes_ago: float, comes_back: bool
) -> None:
    pytest.importorskip("submitit")
    job = SlurmCell(tmp_path, minutes=10, run=lambda path, patience: None)
    folder = RunFolder(tmp_path)
    job.begin(folder, now=time.monotonic() - 60 * minutes_ago)
    folder.update_state(step=step)
    assert (job.checkpoint() is not None) == comes_back
    if not comes_back:
        assert folder.state["status"] == "failed"
        assert (
            folder.state["error"] == "no step was finished within the time limit of 10 minutes; give more with --time"
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "2", "--time", "60"], "--nodes, --time: only for --executor slurm"),
        (["--executor", "slurm", "--jobs", "2"], "--jobs: only for this machine"),
        (["--executor", "slurm", "--time", "soon"], "--time soon: expected minutes, HOURS:MINUTES:SECONDS"),
        (["--executor", "slurm", "--sbatch", "vision"], "--sbatch vision: expected KEY=VALUE"),
    ],
)
def test_options_that_do_not_fit(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["launch", "demo", *words])
    assert str(stopped.value.code).startswith(f"beyondpixel: {message}")
