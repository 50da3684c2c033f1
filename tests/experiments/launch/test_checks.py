"""Errors are told before anything starts, all of them at once."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch import checks, local
from beyondpixel.experiments.launch.command import launch
from beyondpixel.experiments.plan import Run

pytestmark = pytest.mark.usefixtures("quiet")
RESNET18 = {"model.encoder": "resnet18"}


def dry_run(place: Path, output: str = "outputs", **options: Any) -> None:
    launch([str(place / "tiny")], seeds=[1, 2], output=place / output, dry_run=True, **options)


def write(place: Path, name: str, config: dict[str, Any], **changes: dict[str, Any]) -> None:
    """A row with some keys of model, data or trainer changed."""
    for part, values in changes.items():
        (config[part] if part == "trainer" else config[part]["init_args"]).update(values)
    (place / "tiny" / f"{name}.yaml").write_text(yaml.safe_dump({"config": config}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"loss": {"name": "rmi", "radius": 3}}}, r"radius.*region_size"),
        ({"model": {"loss": "rmj"}}, "rmj.*rmi"),
        ({"model": {"loss": {"name": "rmi", "pooling": "sum"}}}, "pooling.*avg.*got 'sum'"),
        ({"model": {"loss": {"name": "rmi", "region_size": -3}}}, "region_size.*-3"),
        ({"model": {"encodr": "resnet18"}}, "encodr"),
        ({"model": {"encoder": "resnet19"}}, "unknown encoder 'resnet19'"),
        ({"model": {"encoder_weights": "imagenett"}}, "unknown encoder_weights='imagenett'"),
        ({"trainer": {"max_stepps": 3}}, "max_stepps"),
        ({"trainer": {"fast_dev_run": True}}, r"trainer.fast_dev_run: leaves no checkpoint .* use --dry-run"),
        ({"trainer": {"val_check_interval": 1.5}}, r"trainer: .*1\.5 for val_check_interval"),
        ({"trainer": {"gradient_clip_algorithm": "max"}}, "trainer: .*gradient_clip_algorithm.*'value', 'norm'"),
        ({"trainer": {"devices": 3}}, r"batch_size 4 is not divisible by 3 processes.*--data.batch_size 3 or 6"),
    ],
)
def test_a_wrong_spec_is_told_before_anything_starts(
    place: Path, tiny: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    write(place, "wrong", tiny, **change)
    with pytest.raises(UserError, match=rf"(?s)nothing was started:\n.*wrong\.yaml.*: .*{message}"):
        dry_run(place)
    assert not (place / "outputs").exists()


def test_data_that_are_not_there_are_told_with_the_command_to_get_them(place: Path, tiny: dict[str, Any]) -> None:
    data = {"class_path": "beyondpixel.datamodules.CamVidDataModule", "init_args": {"root": "/nowhere"}}
    write(place, "wrong", {**tiny, "data": data})
    with pytest.raises(UserError, match=r"(?s)wrong\.yaml \(wrong\): .*/nowhere.*beyondpixel data get camvid"):
        dry_run(place)


def test_all_errors_are_told_at_once_each_with_its_file(place: Path, tiny: dict[str, Any]) -> None:
    write(place, "a", tiny, model={"encoder": "resnet19"})
    write(place, "b", tiny, model={"encoder": "resnet18", "loss": {"name": "rmi", "region_size": -3}})
    write(place, "c", tiny, model={"loss": "ce"}, data={"thickness": -1})
    write(place, "d", tiny, model={"lrr": 0.1})
    (place / "tiny" / "e.yaml").write_text("confi: {}")
    (place / "file").write_text("")
    with pytest.raises(UserError) as told:
        dry_run(place, "file/outputs")
    lines = str(told.value).splitlines()
    assert lines[0] == "nothing was started:"
    for expected in (
        "a.yaml (a): ",
        "b.yaml (b): ",
        "c.yaml (c): ",
        "d.yaml: model.init_args.lrr",
        "e.yaml: confi",
        "--output",
    ):
        assert sum(expected in line for line in lines) == 1, str(told.value)
    assert "file is a file" in str(told.value)


def test_more_devices_than_a_run_gets_are_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "make_slots", lambda *options: [{"CUDA_VISIBLE_DEVICES": "0"}])
    with pytest.raises(UserError, match="trainer.devices 2: a run gets 1; leave it out, and give --gpus 2"):
        dry_run(place, overrides={"trainer.devices": 2})
    monkeypatch.setattr(local, "make_slots", lambda *options: [{"CUDA_VISIBLE_DEVICES": "0,1"}])
    dry_run(place, overrides={"trainer.devices": 2})


def test_too_little_space_is_told_with_numbers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage(10**12, 10**12, 2 * 10**8))
    with pytest.raises(UserError, match=r"the runs need about (\d\.\d) GB .*, but 0\.2 GB are free; make room") as told:
        dry_run(place, overrides=RESNET18)
    # DeepLabv3+ on ResNet-18 has 12.3 million weights; a checkpoint holds each with its momentum, in 4 bytes each
    expected = 4 * (4 * 2 * 12.33e6 * 4 + 50e6) / 1e9
    assert f"about {expected:.1f} GB" in str(told.value)


@pytest.mark.parametrize("columns", [None, 60])
def test_the_plan_is_not_cut_off(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int | None
) -> None:
    """In a pipe each run has one line, in a narrow terminal several; the run's folder is the last column."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(place)
    launch([str(place / "tiny")], seeds=[1, 2], output=Path("o" * 70), dry_run=True)
    lines = [line.split("│")[4].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    folders = [f"{'o' * 70}/tiny/{row}/seed{seed}" for row in ("ce", "rmi") for seed in (1, 2)]
    assert "".join(lines) == "".join(folders)
    assert (len(lines) == len(folders)) == (columns is None)


@pytest.mark.parametrize(("optimizer", "values"), [(None, 2), ("AdamW", 3)])  # its checkpoints have two moments
def test_the_plan_says_how_many_bytes_it_takes(
    place: Path, capsys: pytest.CaptureFixture[str], optimizer: str | None, values: int
) -> None:
    dry_run(place, overrides={**RESNET18, "model.optimizer": optimizer})
    expected = 4 * (4 * values * 12.33e6 * 4 + 50e6) / 1e9
    assert f"4 of 4 runs to do, which take up to {expected:.1f} GB of " in capsys.readouterr().out


def test_each_different_network_is_built_once(
    runs_of: Callable[..., list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that differ in their loss, seed or learning rate alone need no further network."""
    built: list[Any] = []
    real = checks.build_all
    monkeypatch.setattr(checks, "build_all", lambda config: built.append(config) or real(config))
    runs = [*runs_of(1, 2), *runs_of(1, row="rmi"), *runs_of(1, row="rmi", **{"model.lr": 0.5})]
    errors, sizes = checks.check_parts(runs, fresh=runs)
    assert (errors, len(built)) == ([], 1)
    assert set(sizes) == {"tiny/ce", "tiny/rmi"}


def test_overwrite_removes_nothing_that_cannot_be_replaced(
    runs_of: Callable[..., list[Run]], place: Path, tiny: dict[str, Any]
) -> None:
    (run,) = runs_of(1)
    run.prepare()
    run.folder.update_state(status="done")
    shutil.rmtree(place / "tiny")
    (place / "tiny").mkdir()
    write(place, "ce", tiny, model={"encoder": "resnet19"})
    with pytest.raises(UserError, match="unknown encoder 'resnet19'"):
        launch([str(place / "tiny")], output=place / "outputs", overwrite=True)
    assert run.folder.config["model"]["init_args"]["encoder"] == "tu-test_resnet"
    assert run.folder.state["status"] == "done"
