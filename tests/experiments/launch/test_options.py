"""Options: which fit together, a cluster's file, and what sbatch is asked for."""

import time
from pathlib import Path
from typing import Any

import pytest

from beyondpixel.experiments import cli
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch import command
from beyondpixel.experiments.launch.options import (
    CLUSTER_KEYS,
    LISTS,
    read_options,
    read_time_limit,
    submission_parameters,
)
from beyondpixel.experiments.launch.slurm_job import SlurmRun
from beyondpixel.experiments.run.folder import RunFolder


def given(**options: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {name: () if name in LISTS else None for name in (*CLUSTER_KEYS, "jobs")}
    return {**nothing, **options}


def test_time_limits_are_read_as_slurm_writes_them() -> None:
    assert [read_time_limit(text) for text in ("90", "4:00:00", "1-0", "1-2:30", "0:30")] == [90, 240, 1440, 1590, 1]
    for wrong in ("", "4h", "1:2:3:4", "0", "-5"):
        with pytest.raises(UserError, match="--time"):
            read_time_limit(wrong)


def test_a_clusters_file_needs_no_quotes(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("executor: slurm\ntime: 4:00:00\npartition: on\nmem: 32G\ncpus: 8\n")
    options = read_options(given(), file)
    assert (options["partition"], options["cpus"]) == ("on", 8)
    assert submission_parameters(options)["time"] == 240


def test_several_devices_go_into_the_config_and_one_leaves_it_alone() -> None:
    assert command._devices(1, 1) == {}
    assert command._devices(4, 1) == {"trainer.devices": 4, "trainer.num_nodes": 1}
    assert command._devices(1, 2) == {"trainer.devices": 1, "trainer.num_nodes": 2}


def asked(**options: Any) -> dict[str, Any]:
    return submission_parameters(read_options(given(executor="slurm", **options), None))


def test_what_sbatch_is_asked_for() -> None:
    sbatch = ["account=vision", "--mail-user=me@here", "mail_type=END", "exclusive", "--nice"]
    parameters = asked(
        gpus=4, nodes=2, time="60", sbatch=sbatch, srun=["--mpi=pmix", "container-image=a"], setup=["module load cuda"]
    )
    assert (parameters["ntasks_per_node"], parameters["gpus_per_node"], parameters["nodes"]) == (4, 4, 2)
    assert parameters["additional_parameters"] == {
        **{"requeue": True, "account": "vision", "mail-user": "me@here", "mail-type": "END"},
        **{"exclusive": True, "nice": True},
    }
    assert parameters["srun_args"] == ["--kill-on-bad-exit=1", "--mpi=pmix", "--container-image=a"]
    assert parameters["setup"] == ["module load cuda"]
    assert (parameters["time"], parameters["signal_delay_s"]) == (60, 120)
    assert "gpus_per_node" not in asked(gpus=0)
    # a node may show its GPUs to all, and a Trainer takes those that it sees
    assert asked(gpus=0, setup=["module load cuda"])["setup"] == ["export CUDA_VISIBLE_DEVICES=", "module load cuda"]
    assert asked(cpus=8)["srun_args"] == ["--kill-on-bad-exit=1", "--cpus-per-task=8"]
    assert "gpus_per_node" not in asked(gpus=2, sbatch=["gres=gpu:a100:2"])
    assert "requeue" not in asked(sbatch=["no-requeue"])["additional_parameters"]
    assert asked(time="1")["signal_delay_s"] == 15
    assert asked(time_warning=600)["signal_delay_s"] == 600
    with pytest.raises(UserError, match="--time-warning 600: expected fewer seconds than the limit has, 600"):
        asked(time="10", time_warning=600)


def test_a_file_for_a_cluster_whose_options_the_command_line_wins_over(tmp_path: Path) -> None:
    file = tmp_path / "ours.yaml"
    file.write_text(
        "executor: slurm\ngpus: 2\npartition: long\ntime: '8:00:00'\nmax-parallel: 4\n"
        "sbatch: {account: vision, exclusive: true}\nsetup: [module load cuda]\n"
    )
    options = read_options(given(gpus=1, sbatch=["qos=high"], setup=["export X=1"]), file)
    parameters = submission_parameters(options)
    assert (options["executor"], options["max_parallel"]) == ("slurm", 4)
    assert (parameters["gpus_per_node"], parameters["partition"], parameters["time"]) == (1, "long", 480)
    further = {"account": "vision", "exclusive": True, "qos": "high", "requeue": True}
    assert parameters["additional_parameters"] == further
    assert parameters["setup"] == ["module load cuda", "export X=1"]
    file.write_text("executor: pbs\n")
    with pytest.raises(UserError, match="executor: expected slurm or local, got pbs"):
        read_options(given(), file)
    file.write_text("partitoin: long\n")
    with pytest.raises(UserError, match=r"ours\.yaml: partitoin: unknown option; did you mean partition\?"):
        read_options(given(), file)


def test_a_time_limit_among_the_options_of_sbatch_is_ours() -> None:
    parameters = asked(sbatch=["time=2:00:00", "partition=long", "nodes=2"])
    assert (parameters["time"], parameters["partition"], parameters["nodes"]) == (120, "long", 2)
    assert parameters["additional_parameters"] == {"requeue": True}
    with pytest.raises(UserError, match="--sbatch time=2:00:00: given as --time 60 already"):
        asked(time="60", sbatch=["time=2:00:00"])


@pytest.mark.parametrize(("step", "minutes_ago", "comes_back"), [(0, 9, False), (5, 9, True), (0, 1, True)])
def test_a_job_that_finished_no_step_in_its_time_does_not_come_back(
    tmp_path: Path, step: int, minutes_ago: float, comes_back: bool
) -> None:
    pytest.importorskip("submitit")
    job = SlurmRun(tmp_path, minutes=10, job=lambda path, patience: None)
    folder = RunFolder(tmp_path)
    job.begin(folder, now=time.monotonic() - 60 * minutes_ago)
    folder.update_state(step=step)
    assert (job.checkpoint() is not None) == comes_back
    if not comes_back:
        assert folder.state["status"] == "failed"
        expected = "no step, test or evaluation was finished within the time limit of 10 minutes; give more with --time"
        assert folder.state["error"] == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "2", "--time", "60"], "--nodes, --time: only for --executor slurm"),
        (["--executor", "slurm", "--jobs", "2"], "--jobs: only for this machine"),
        (["--executor", "slurm", "--time", "soon"], "--time soon: expected minutes, HOURS:MINUTES:SECONDS"),
        (["--executor", "slurm", "--sbatch", "=vision"], "--sbatch =vision: expected NAME=VALUE or NAME"),
        (["--executor", "slurm", "--sbatch", "array=1-3"], "--sbatch array=1-3: the launcher sets --array itself"),
        (["--executor", "slurm", "--sbatch", "nodes=two"], "--sbatch nodes=two: expected a number of nodes"),
        (["--jobs", "0"], "--jobs 0: expected a number, 1 or more"),
        (["--gpus", "-1"], "--gpus -1: expected a number, 0 or more"),
    ],
)
def test_options_that_do_not_fit(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["launch", "demo", *words])
    assert str(stopped.value.code).startswith(f"beyondpixel: {message}")


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["launch", "--help"])
    said = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in said for name in (*CLUSTER_KEYS, "jobs", "cluster", "keep"))
