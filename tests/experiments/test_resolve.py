"""Resolving a spec: defaults come from the class alone, every error is told with its location."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from beyondpixel.experiments import spec
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.lightning_cli import read_command_line
from beyondpixel.experiments.plan import plan_runs
from beyondpixel.experiments.resolve import complete, resolve
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.spec import SpecError, load_specs

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


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a fragment; files are named from here, as a user in it sees them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spec, "BASE", tmp_path / "base")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "part.yaml").write_text("trainer:\n  max_steps: 2\n")
    (tmp_path / "table").mkdir()
    return tmp_path


def errors_of(text: str, place: Path, overrides: dict[str, object] | None = None) -> list[str]:
    (place / "table" / "row.yaml").write_text(text)
    (found,) = load_specs(["table/row"], overrides)
    with pytest.raises(SpecError) as told:
        resolve(found)
    return list(told.value.errors)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lossx: 1", "model.init_args.lossx: unknown key; did you mean loss"),
        ("pooling: avg", "model.init_args.pooling: unknown key; pooling belongs to a loss: write it below"),
        ("lr: null", "model.init_args.lr: expected float, got null; omit the key to use its default"),
        ("lr: abc", "model.init_args.lr: expected float, got 'abc'"),
        ("variant: v4", "model.init_args.variant: expected Literal['v3', 'v3plus'], got 'v4'"),
        ("atrous_rates: 5", "model.init_args.atrous_rates: expected Sequence[int] | None, got 5"),
        ("num_classes: 5", "model.init_args.num_classes: set by the data module; remove it"),
        (
            "optimizer: {class_path: torch.optim.AdamV}",
            "model.init_args.optimizer.class_path: no class 'torch.optim.AdamV' (module 'torch.optim' has no attribute "
            "'AdamV'); did you mean Adam",
        ),
        (
            "optimizer: {class_path: torch.optim.AdamW, init_args: {lrr: 1}}",
            "model.init_args.optimizer.init_args.lrr: unknown key; did you mean lr?",
        ),
        (
            "optimizer: {class_path: torch.optim.AdamW, init_args: {lr: fast}}",
            "model.init_args.optimizer: expected Callable",
        ),
        (
            "optimizer: {class_path: torch.optimm.AdamW}",
            "model.init_args.optimizer.class_path: no class 'torch.optimm.AdamW' (No module named 'torch.optimm'); "
            "expected a full path such as torch.optim.AdamW",
        ),
        (
            "optimizer: {class_path: AdamWW}",
            "model.init_args.optimizer.class_path: no class 'AdamWW' (module 'torch.optim' has no attribute 'AdamWW'); "
            "did you mean AdamW",
        ),
        (
            "optimizer: {class_path: AdamW, init_args: {lrr: 1}}",
            "model.init_args.optimizer.init_args.lrr: unknown key; did you mean lr?",
        ),
        (
            "lr_scheduler: {init_args: {step_size: 5}}",
            "model.init_args.lr_scheduler: expected class_path beside these arguments, got {'init_args': "
            "{'step_size': 5}}; add class_path: torch.optim.lr_scheduler.NAME",
        ),
        ("loss: rmj", "model.init_args.loss: expected the name of a loss, got 'rmj'; did you mean rmi?"),
        ("loss: 3", "model.init_args.loss: expected str | dict[str, Any]"),
        ("loss: {name: []}", "model.init_args.loss.name: expected the name of a loss, got []"),
        ("loss: {name: rmj}", "model.init_args.loss.name: expected the name of a loss, got 'rmj'; did you mean rmi?"),
        (
            "loss: {name: rmi, regoin_size: 3}",
            "model.init_args.loss.regoin_size: unknown key; did you mean region_size?",
        ),
        (
            "loss: {name: rmi, pooling: avgg}",
            "model.init_args.loss.pooling: expected Literal['avg', 'max', 'interp', 'stride'], got 'avgg'; "
            "did you mean avg?",
        ),
        ("loss: {name: rmi, pooling: sum}", "model.init_args.loss.pooling: expected Literal['avg', 'max', 'interp'"),
        ("loss: [{name: ce}, {name: rmi, ridge: x}]", "model.init_args.loss.1.ridge: expected float, got 'x'"),
        ("loss: {region_size: 3}", "model.init_args.loss: expected the name of a loss, got no name"),
        ("warmup_iters: 2", "model.init_args.warmup_iters: expected fewer iterations than trainer.max_steps, 2, got 2"),
    ],
)
def test_an_error_in_the_row(place: Path, line: str, message: str) -> None:
    (error,) = errors_of(f"{ROW}      {line}\n", place)
    assert error.startswith(f"table/row.yaml: {message}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainer.limit_train_batches": 0}, "trainer.limit_train_batches: expected more than 0, got 0; leave the key"),
        ({"trainer.accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches: expected more than 0, got 0"),
        ({"trainer.check_val_every_n_epoch": -1}, "trainer.check_val_every_n_epoch: expected more than 0, got -1"),
        (
            {"trainer.enable_checkpointing": False},
            "trainer.enable_checkpointing: expected True, got False: a run writes",
        ),
        ({"trainer.barebones": True}, "trainer.barebones: expected False, got True: a run writes checkpoints"),
        ({"trainer.strategy": "fspd"}, "trainer.strategy: expected a name, got 'fspd'; did you mean fsdp"),
        ({"trainer.accelerator": "cuba"}, "trainer.accelerator: expected a name, got 'cuba'; did you mean cuda"),
    ],
)
def test_a_training_that_cannot_start_is_an_error(place: Path, overrides: dict[str, object], message: str) -> None:
    (error,) = errors_of(ROW, place, overrides)
    assert error.startswith(f"command line: {message}")


@pytest.mark.parametrize(
    ("loss", "got"), [({}, "got no name; expected one of"), ({"region_size": 5}, "got no name beside region_size; exp")]
)
def test_a_loss_without_a_name_is_an_error(loss: dict[str, int], got: str) -> None:
    _, errors = complete({"model": {"init_args": {"loss": loss}}})
    assert [keys for keys, _ in errors] == [("model", "init_args", "loss")]
    assert got in errors[0][1]


@pytest.mark.parametrize("seed", [-1, True])
def test_a_seed_out_of_range_is_an_error(seed: int) -> None:
    _, errors = complete({"seed_everything": seed})
    assert errors == [(("seed_everything",), f"expected an integer from 0 to 4294967295, got {seed}")]
    with pytest.raises(UserError, match="--seeds -1: expected integers from 0 to 4294967295"):
        plan_runs(["demo/ce"], seeds=[1, -1], output=Path("outputs"), overrides={})


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        (
            "ShapesDataModule",
            "ShapeDataModule",
            ["data.class_path: no class 'beyondpixel.datamodules.ShapeDataModule'"],
        ),
        ("beyondpixel.lightning_modules.Deep", "Deap", ["model.class_path: no class 'DeapLabModule'"]),
        ("DeepLabModule", "RMILoss", ["model.class_path: no class 'beyondpixel.lightning_modules.RMILoss'"]),
        (
            "init_args:\n      encoder",
            "init_argz:\n      encoder",
            ["model.init_argz: unknown key; did you mean init_args"],
        ),
        ("num_train: 4", "num_trian: 4", ["data.init_args.num_trian: unknown key; did you mean num_train"]),
        (
            "num_train: 4",
            "num_train: x\n      batch_size: [1]",
            ["data.init_args.num_train: expected int, got 'x'", "data.init_args.batch_size: expected int, got [1]"],
        ),
        ("  model:\n", "  model:\n    lr: 3\n", ["model.lr: unknown key; it belongs below model.init_args"]),
        (
            "  model:\n",
            "  trainer: {max_stepz: 3}\n  model:\n",
            ["trainer.max_stepz: unknown key; did you mean max_steps"],
        ),
        ("  model:\n", "  trainer: {max_steps: null}\n  model:\n", ["trainer.max_steps: expected int, got null"]),
    ],
)
def test_errors_anywhere_in_a_row(place: Path, old: str, new: str, messages: list[str]) -> None:
    assert old in ROW
    errors = errors_of(ROW.replace(old, new, 1), place)
    assert len(errors) == len(messages), errors
    for error, message in zip(errors, messages, strict=True):
        assert error.startswith(f"table/row.yaml: {message}"), error


def test_an_error_in_a_fragment_is_told_there(place: Path) -> None:
    (place / "base" / "part.yaml").write_text("trainer:\n  max_steps: 2\n  log_evry_n_steps: 1\n")
    (error,) = errors_of(ROW, place)
    assert error.startswith("base/part.yaml: trainer.log_evry_n_steps: unknown key; did you mean log_every_n_steps")


def test_an_error_on_the_command_line_is_told_as_such(place: Path) -> None:
    (error,) = errors_of(ROW, place, {"model.lossx": 3})
    assert error.startswith("command line: model.init_args.lossx: unknown key")
    (error,) = errors_of(ROW, place, {"model.loss": {"name": "rmi", "radius": 3}})
    assert error.startswith("command line: model.init_args.loss.radius: unknown key; expected one of region_size, ")


def test_values_take_the_form_of_their_annotation() -> None:
    values, errors = complete({"data": {"init_args": {"image_size": [8, 9]}}, "model": {"init_args": {"lr": 1}}})
    assert errors == []
    assert values["data"]["init_args"]["image_size"] == [8, 9]
    assert isinstance(values["model"]["init_args"]["lr"], float)


def test_a_short_class_name_becomes_a_full_path_and_a_users_class_stays() -> None:
    values, _ = complete({"model": {"class_path": "MCIBIModule"}})
    assert values["model"]["class_path"] == "beyondpixel.lightning_modules.MCIBIModule"
    values, errors = complete({"data": {"class_path": "pytorch_lightning.demos.boring_classes.BoringDataModule"}})
    assert errors == []
    assert values["data"] == {"class_path": "pytorch_lightning.demos.boring_classes.BoringDataModule", "init_args": {}}


def test_an_argument_that_a_class_requires_is_no_fault_of_the_others() -> None:
    data = {"class_path": "FolderDataModule", "init_args": {"root": "here", "crop_size": 64}}
    values, errors = complete({"data": data})
    assert errors == []
    assert (values["data"]["init_args"]["root"], values["data"]["init_args"]["crop_size"]) == ("here", 64)


def test_arguments_are_keys_and_values() -> None:
    _, errors = complete({"data": {"class_path": "ShapesDataModule", "init_args": [None]}})
    assert errors == [(("data", "init_args"), "expected keys and values, got [None]")]


def test_a_list_of_losses_contains_names_and_mappings() -> None:
    loss = ["ce", {"name": "lovasz", "weight": 0.5}]
    of_a_spec, errors = complete({"model": {"init_args": {"loss": loss}}})
    assert errors == []
    assert [entry["name"] for entry in of_a_spec["model"]["init_args"]["loss"]] == ["ce", "lovasz"]
    of_a_command, _ = read_command_line("fit", [f"--model.loss={loss}"])
    assert of_a_command["model"]["init_args"]["loss"] == of_a_spec["model"]["init_args"]["loss"]


def test_defaults_of_a_class_within_a_value_are_resolved() -> None:
    stopping = {"class_path": "pytorch_lightning.callbacks.EarlyStopping", "init_args": {"monitor": "val/mIoU"}}
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "nesterov": True, "momentum": 0.8}}
    values, errors = complete({"model": {"init_args": {"optimizer": optimizer}}, "trainer": {"callbacks": [stopping]}})
    assert errors == []
    found = values["model"]["init_args"]["optimizer"]["init_args"]
    assert {key: found[key] for key in ("lr", "momentum", "nesterov", "dampening", "weight_decay")} == {
        "lr": 0.1,
        "momentum": 0.8,
        "nesterov": True,
        "dampening": 0,
        "weight_decay": 0,
    }
    (callback,) = values["trainer"]["callbacks"]
    assert (callback["init_args"]["patience"], callback["init_args"]["mode"]) == (3, "min")


@pytest.mark.slow
def test_an_integer_stays_one_whatever_was_imported_before(tmp_path: Path) -> None:
    """Which order Trainer's int | float has depends on other libraries; 1.0 would be all batches, 2.0 an error."""
    code = """
import inspect, sys
from typing import Union
from pytorch_lightning import Trainer
types = inspect.unwrap(Trainer.__init__).__annotations__
types.update({name: Union[float, int, None] for name in types if name.startswith("limit_")})
from beyondpixel.experiments.cli import main
main(sys.argv[1:])
main(["test", "--ckpt_path", "run/checkpoints/last.ckpt"])
"""
    sizes = ["--data.num_train=8", "--data.num_val=2", "--data.num_test=6", "--data.image_size=[48, 64]"]
    batches = ["--data.batch_size=2", "--data.eval_batch_size=2", "--data.num_workers=0"]
    limits = ["--trainer.limit_train_batches=2", "--trainer.limit_test_batches=1", "--trainer.max_epochs=1"]
    model = ["--model.encoder=tu-test_resnet", "--model.warmup_iters=0", "--trainer.accelerator=cpu"]
    words = ["fit", *sizes, *batches, *limits, *model, "--trainer.max_steps=-1", "--trainer.default_root_dir=run"]
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFolder(tmp_path / "run")
    trainer = run.config["trainer"]
    assert [repr(trainer[f"limit_{stage}_batches"]) for stage in ("train", "test")] == ["2", "1"]
    assert run.state["step"] == 2
    with np.load(run.confusion_file) as archive:
        assert 48 * 64 < archive["matrix"].sum() <= 2 * 48 * 64
