"""What is wrong with a config is told where somebody wrote it, and all of it at once."""

import sys
from pathlib import Path
from typing import Any

import pytest

from beyondpixel.experiments import specs
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.plan import make_plan
from beyondpixel.experiments.specs import SpecError, find_specs, load_spec
from beyondpixel.experiments.training_cli import resolve_config

ROW = """\
base: [part]
config:
  data:
    class_path: beyondpixel.datamodules.ShapesDataModule
    init_args:
      num_train: 4
  model:
    class_path: beyondpixel.lightning_modules.DeepLabModule
    init_args:
      encoder: resnet18
"""


@pytest.fixture(autouse=True)
def no_arguments_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns if a config is handed over while the command line has words."""
    monkeypatch.setattr(sys, "argv", ["beyondpixel"])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where specs and a fragment are made; files are named from here, as a user in this folder sees them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(specs, "BASE", tmp_path / "base")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "part.yaml").write_text("trainer:\n  max_steps: 2\n")
    (tmp_path / "table").mkdir()
    return tmp_path


def mistakes_of(text: str, place: Path, overrides: dict[str, Any] | None = None) -> list[str]:
    (place / "table" / "row.yaml").write_text(text)
    spec = load_spec(find_specs(["table/row"])[0], overrides)
    with pytest.raises(SpecError) as told:
        resolve_config(spec.config, spec.origin)
    return list(told.value.mistakes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lossx: 1", "model.init_args.lossx: unknown key; did you mean loss"),
        (
            "pooling: avg",
            "model.init_args.pooling: unknown key; pooling belongs to a loss: write it below model.init_args",
        ),
        ("lr: abc", "model.init_args.lr: expected a number, got 'abc'"),
        ("variant: v4", "model.init_args.variant: expected 'v3' or 'v3plus', got 'v4'"),
        ("atrous_rates: 5", "model.init_args.atrous_rates: expected a list or null, got 5"),
        ("num_classes: 5", "model.init_args.num_classes: the data module says this; take it out"),
        (
            "loss: rmj",
            "model.init_args.loss: expected one of ce, bce, rmi, affinity, adaptive_affinity, pyramid, got 'rmj'",
        ),
        ("loss: 3", "model.init_args.loss: expected text or keys and values, got 3"),
        (
            "loss: {name: rmi, regoin_size: 3}",
            "model.init_args.loss.regoin_size: unknown key; did you mean region_size?",
        ),
        (
            "loss: {name: rmi, pooling: sum}",
            "model.init_args.loss.pooling: expected one of 'avg', 'max', 'interp', 'stride', got 'sum'",
        ),
        ("loss: {region_size: 3}", "model.init_args.loss: expected one of ce, bce, rmi,"),
    ],
)
def test_a_mistake_in_the_row(place: Path, line: str, message: str) -> None:
    (mistake,) = mistakes_of(f"{ROW}      {line}\n", place)
    assert mistake.startswith(f"table/row.yaml:11: {message}")


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        (
            "ShapesDataModule",
            "ShapeDataModule",
            [":4: data.class_path: no class 'beyondpixel.datamodules.ShapeDataModule'; did"],
        ),
        (
            "DeepLabModule",
            "DeapLabModule",
            [":8: model.class_path: no class 'beyondpixel.lightning_modules.DeapLabModule'; did"],
        ),
        (
            "init_args:\n      encoder",
            "init_argz:\n      encoder",
            [":9: model.init_argz: unknown key; did you mean init_args?"],
        ),
        ("encoder: resnet18", "encoder: resnet19", [":10: model.init_args.encoder: unknown encoder 'resnet19'"]),
        ("num_train: 4", "num_trian: 4", [":6: data.init_args.num_trian: unknown key; did you mean num_train"]),
        (
            "num_train: 4",
            "num_train: x\n      batch_size: [1]",
            [
                ":6: data.init_args.num_train: expected a whole number, got 'x'",
                ":7: data.init_args.batch_size: expected a whole number, got [1]",
            ],
        ),
        ("  model:\n", "  trainer: 3\n  model:\n", [":7: trainer: expected keys and values, got 3"]),
        ("  model:\n", "  model:\n    lr: 3\n", [":8: model.lr: unknown key; it belongs below model.init_args"]),
    ],
)
def test_mistakes_anywhere_in_a_row(place: Path, old: str, new: str, messages: list[str]) -> None:
    assert old in ROW
    mistakes = mistakes_of(ROW.replace(old, new, 1), place)
    assert len(mistakes) == len(messages), mistakes
    for mistake, message in zip(mistakes, messages, strict=True):
        assert mistake.startswith(f"table/row.yaml{message}"), mistake


def test_a_mistake_in_a_fragment_is_told_there(place: Path) -> None:
    (place / "base" / "part.yaml").write_text("trainer:\n  max_steps: 2\n  log_evry_n_steps: 1\n")
    (mistake,) = mistakes_of(ROW, place)
    assert mistake.startswith("base/part.yaml:3: trainer.log_evry_n_steps: unknown key; did you mean log_every_n_steps")


def test_a_mistake_on_the_command_line_is_told_as_such(place: Path) -> None:
    (mistake,) = mistakes_of(ROW, place, {"model.lossx": 3})
    assert mistake.startswith("--model.lossx: model.init_args.lossx: unknown key")
    (mistake,) = mistakes_of(ROW, place, {"model.loss": {"name": "rmi", "radius": 3}})
    assert mistake.startswith("--model.loss: model.init_args.loss.radius: unknown key; valid keys are region_size, ")


def test_all_mistakes_of_all_specs_are_told_before_anything_starts(place: Path) -> None:
    (place / "base" / "part.yaml").write_text("trainer:\n  max_stepps: 2\n")
    for index in range(4):  # share one wrong line
        (place / "table" / f"row{index}.yaml").write_text(ROW)
    (place / "table" / "typo.yaml").write_text(ROW.replace("encoder", "encodr"))
    (place / "table" / "broken.yaml").write_text("base: [part\n")
    (place / "table" / "size.yaml").write_text(
        ROW.replace("base: [part]\n", "").replace("num_train: 4", "batch_size: 0")
    )
    grid = f"{ROW}row: '{{loss}}'\ngrid:\n  loss:\n    model.loss:\n      - ce\n      - rmj\n"
    (place / "table" / "grid.yaml").write_text(grid.replace("base: [part]\n", ""))
    with pytest.raises(UserError) as told:
        make_plan(["table"], seeds=[1], output=place / "outputs", overrides={})
    first, *lines = str(told.value).splitlines()
    assert first == "nothing was started:"
    assert [line.partition(": ")[0] for line in lines] == [
        "table/broken.yaml:2",
        "table/grid.yaml:15",
        "base/part.yaml:2",
        "table/typo.yaml:10",
        "table/size.yaml:5",  # found later, when the data is looked for
    ]
    assert lines[4].endswith("batch_size must be at least 1, got 0")
    assert not (place / "outputs").exists()
