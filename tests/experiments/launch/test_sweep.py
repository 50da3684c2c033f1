"""The sweep file, and what W&B's agent makes of it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from wandb.apis.public import sweeps
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from beyondpixel.experiments import allowed_imports, cli
from beyondpixel.experiments.launch import sweep
from beyondpixel.experiments.launch.actions import Action, take
from beyondpixel.experiments.plan import Run
from beyondpixel.experiments.wandb_arguments import new_wandb_id

pytestmark = pytest.mark.usefixtures("quiet")


def test_a_sweep_is_written_whatever_lies_in_the_outputs(
    runs_of: Callable[..., list[Run]], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of another config, which a launch refuses, and a damaged one."""
    other, damaged = runs_of(1, 2)
    take(other, Action("start", seen={"status": "new"}))
    other.folder.update_state(status="done")
    damaged.folder.path.mkdir()
    (damaged.folder.path / "state.json").write_text("[]")
    monkeypatch.chdir(place)
    cli.main(["launch", "tiny/ce.yaml", "--as-wandb-sweep", "sweep.yaml", "--trainer.max_steps", "5"])
    assert len(yaml.safe_load(Path("sweep.yaml").read_text())["parameters"]["row"]["values"]) == 1


@pytest.fixture
def written(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.chdir(place)
    file = place / "sweep.yaml"
    cli.main(["launch", "tiny", "--seeds", "1", "2", "--as-wandb-sweep", str(file), "--trainer.max_steps", "5"])
    assert f"wandb sweep {file}" in capsys.readouterr().out
    assert not (place / "outputs").exists()
    return file


def test_a_grid_over_rows_and_seeds_that_wandb_accepts(written: Path, place: Path) -> None:
    text = written.read_text()
    content = yaml.safe_load(text)
    assert content["method"] == "grid"
    rows = content["parameters"]["row"]["values"]
    assert content["parameters"]["seed"] == {"values": [1, 2]}
    assert [row["spec"] for row in rows] == [str(place / "tiny" / f"{row}.yaml") for row in ("ce", "rmi")]
    assert [(row["loss"], row["df"], row["pooling"]) for row in rows] == [("ce", None, None), ("rmi", 4, "avg")]
    assert "encoder" not in rows[0]  # in which the rows do not differ
    # W&B's own check, which raises for what it does not understand
    sweeps._validate_config_and_fill_distribution(content)


def test_the_agents_command_runs_one_cell(written: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = yaml.safe_load(written.read_text())
    row = content["parameters"]["row"]["values"][1]
    # as W&B's agent puts it together
    arguments = create_sweep_command_args({"args": {"row": {"value": row}, "seed": {"value": 2}}})
    words: list[str] = []
    for part in create_sweep_command(content["command"]):
        words += arguments["args_json"] if part == "${args_json}" else [part]
    words = words[words.index(sys.executable) :]  # before it stands /usr/bin/env
    assert words[:4] == [sys.executable, "-P", "-m", "beyondpixel.experiments.launch.sweep"]
    called: list[list[str]] = []
    monkeypatch.setattr(cli, "main", called.append)
    monkeypatch.setattr(sys, "argv", words[3:])
    sweep.main()
    expected = ["launch", row["spec"], "--seeds", "2", "--output", str(place / "outputs"), "--trainer.max_steps", "5"]
    assert called == [expected]


def test_the_agents_are_told_all_that_a_launch_would_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv(allowed_imports.VARIABLE, "")  # so that it is as before afterwards
    words = ["--gpus", "2", "--keep", "weights", "--allow-import", "mine", "--allow-import", "yours"]
    cli.main(["launch", "tiny", "--as-wandb-sweep", "sweep.yaml", *words])
    command = yaml.safe_load(Path("sweep.yaml").read_text())["command"]
    assert command[-6:] == ["--gpus", "2", "--keep", "weights", "--allow-import", "mine,yours"]
    monkeypatch.setenv(allowed_imports.VARIABLE, "")
    loss, scales = "{name: rmi, region_size: 5, pooling: max}", "[0.5, 2.0]"
    cli.main(["launch", "tiny/ce", "--as-wandb-sweep", "sweep.yaml", "--model.loss", loss, "--data.scales", scales])
    words = yaml.safe_load(Path("sweep.yaml").read_text())["command"][-4:]
    assert words[::2] == ["--model.loss", "--data.scales"]
    assert [yaml.safe_load(word) for word in words[1::2]] == [yaml.safe_load(loss), yaml.safe_load(scales)]
    cli.main(["launch", "tiny", "--as-wandb-sweep", "sweep.yaml", "--gpus", "2"])
    assert yaml.safe_load(Path("sweep.yaml").read_text())["command"][-2:] == ["--gpus", "2"]
    with pytest.raises(SystemExit, match="agents execute the runs where they are started; omit --executor slurm"):
        cli.main(["launch", "tiny", "--as-wandb-sweep", "sweep.yaml", "--executor", "slurm"])


def test_the_run_has_the_id_that_the_agent_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc12345")
    assert new_wandb_id() == "abc12345"
    monkeypatch.delenv("WANDB_RUN_ID")
    assert new_wandb_id() != new_wandb_id()
