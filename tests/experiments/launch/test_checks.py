"""What is wrong is told before anything starts, all of it at once."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import yaml

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch import checks
from beyondpixel.experiments.launch.launching import launch
from beyondpixel.experiments.launch.plan import make_plan
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.experiments.specs import merge


def plan(place: Path, output: str | Path = "outputs", **options: Any) -> Any:
    return make_plan([place / "tiny"], seeds=[1, 2], output=place / output, overrides={}, **options)


def write(place: Path, name: str, config: dict[str, Any]) -> None:
    (place / "tiny" / f"{name}.yaml").write_text(yaml.safe_dump({"config": config}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"init_args": {"loss": {"name": "rmi", "radius": 3}}}}, r"radius.*region_size"),
        ({"model": {"init_args": {"loss": "rmj"}}}, r"expected one of .*rmi.*got 'rmj'; did you mean rmi"),
        (
            {"model": {"init_args": {"loss": {"name": "rmi", "pooling": "sum"}}}},
            r"pooling: expected one of .*'avg'.*got 'sum'",
        ),
        ({"model": {"init_args": {"encodr": "resnet18"}}}, "encodr"),
        ({"trainer": {"max_stepps": 3}}, "max_stepps"),
        ({"data": {"class_path": "beyondpixel.datamodules.CamWidDataModule"}}, "CamWidDataModule"),
        (
            {"data": {"class_path": "beyondpixel.datamodules.CamVidDataModule", "init_args": {"root": "/nowhere"}}},
            "There is no folder /nowhere.*beyondpixel data get camvid --root /nowhere",
        ),
    ],
)
def test_a_wrong_spec_is_told_before_anything_starts(
    place: Path, tiny: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    write(place, "wrong", merge(tiny, change))
    with pytest.raises(UserError, match=rf"(?s)nothing was started:\n.*wrong\.yaml:\d+: .*{message}"):
        plan(place)
    assert not (place / "outputs").exists()


def test_all_mistakes_are_told_at_once_each_with_its_file(place: Path, tiny: dict[str, Any]) -> None:
    write(place, "a", merge(tiny, {"model": {"init_args": {"lrr": 1}}}))
    write(place, "b", merge(tiny, {"model": {"init_args": {"encoder": "resnet19"}}}))
    write(place, "c", merge(tiny, {"data": {"init_args": {"thickness": -1}}}))
    (place / "file").write_text("")
    with pytest.raises(UserError) as told:
        plan(place, "file/outputs")
    lines = str(told.value).splitlines()
    assert lines[0] == "nothing was started:"
    for expected in ("a.yaml", "b.yaml", "c.yaml", "--output"):
        assert sum(expected in line for line in lines) == 1, str(told.value)
    assert "file is a file" in lines[-1]


def test_too_little_space_is_told_with_numbers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage(10**12, 10**12, 2 * 10**8))
    with pytest.raises(UserError, match=r"4 runs need about (\d\.\d) GB .*, but 0\.2 GB are free; make room") as told:
        plan(place)
    # DeepLabv3+ on ResNet-18 has 12.3 million weights; a checkpoint holds each with its momentum, in 4 bytes each
    expected = 4 * (3 * 2 * 12.33e6 * 4 + 50e6) / 1e9
    assert f"about {expected:.1f} GB" in str(told.value)


def test_each_different_model_is_built_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that differ in their loss alone, and seeds, need no further model."""
    built: list[Any] = []
    real = checks._build
    monkeypatch.setattr(checks, "_build", lambda config: built.append(config) or real(config))
    assert len(plan(place).work) == 4
    assert len(built) == 1


def finished(place: Path, row: str = "ce", seed: int = 1, **state: Any) -> RunFolder:
    """A run that has been here before."""
    (cell,) = [cell for cell in plan(place).cells if (cell.spec.row, cell.seed) == (row, seed)]
    cell.prepare()
    cell.folder.update_state(**{"status": "done", "step": 8, **state})
    cell.folder.last_checkpoint.parent.mkdir(parents=True, exist_ok=True)
    cell.folder.last_checkpoint.write_bytes(b"weights")
    return cell.folder


def test_overwrite_removes_nothing_that_cannot_be_replaced(place: Path, tiny: dict[str, Any]) -> None:
    folder = finished(place)
    write(place, "ce", merge(tiny, {"model": {"init_args": {"encoder": "resnet19"}}}))
    with pytest.raises(UserError, match="unknown encoder 'resnet19'"):
        launch([place / "tiny" / "ce.yaml"], seeds=[1], output=place / "outputs", overrides={}, overwrite=True)
    assert folder.last_checkpoint.read_bytes() == b"weights"
    assert folder.state["status"] == "done"


@pytest.mark.parametrize(
    ("state", "options", "kind", "note"),
    [
        ({}, {}, "done", ""),
        ({}, {"overwrite": True}, "replaces", "done"),
        ({"status": "failed", "error": "it rained"}, {}, "failed", "it rained"),
        ({"status": "failed"}, {"retry_failed": True}, "resumes", "step 8"),
        ({"status": "running"}, {}, "resumes", "step 8"),  # says so, but nobody holds its lock: it was killed
        ({"status": "interrupted"}, {}, "resumes", "step 8"),
        ({"status": "trained"}, {}, "resumes", "test"),
        ({"status": "queued", "job": "99999_1"}, {}, "resumes", "step 8"),  # a job that is no more
    ],
)
def test_what_is_done_with_a_run_that_is_there(
    place: Path, state: dict[str, Any], options: dict[str, Any], kind: str, note: str
) -> None:
    finished(place, **state)
    situations = {(cell.spec.row, cell.seed): situation for cell, situation in plan(place, **options)}
    assert situations["ce", 1].kind == kind
    assert note in situations["ce", 1].note
    assert situations["rmi", 2].kind == "starts"


def test_a_failed_run_is_left_alone_and_told(place: Path) -> None:
    for row in ("ce", "rmi"):
        finished(place, row, status="failed", error="it rained")
    with pytest.raises(UserError, match="2 runs failed in an earlier launch and were left alone: tiny/ce seed1, tiny/"):
        launch([place / "tiny"], seeds=[1], output=place / "outputs", overrides={})


def test_runs_of_other_configs_are_all_told(place: Path, tiny: dict[str, Any]) -> None:
    finished(place)
    finished(place, "rmi", status="interrupted")
    shutil.rmtree(place / "tiny")
    (place / "tiny").mkdir()
    for row in ("ce", "rmi"):
        write(place, row, merge(tiny, {"model": {"init_args": {"loss": row}}, "trainer": {"max_steps": 9}}))
    with pytest.raises(UserError) as told:
        plan(place)
    assert "ce/seed1 holds a finished run of another config (trainer.max_steps was 8 and is 9)" in str(told.value)
    assert "rmi/seed1 holds an unfinished run of another config (trainer.max_steps was 8 and is 9)" in str(told.value)
