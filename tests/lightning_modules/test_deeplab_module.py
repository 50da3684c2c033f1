"""DeepLabModule through Trainer, checkpoints and LightningCLI."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LightningCLI
from torchvision.models import resnet18

from beyondpixel.lightning_modules import DeepLabModule, SegmentationModule

Make = Callable[..., Any]


@pytest.mark.parametrize("variant", ["v3", "v3plus"])
def test_one_step_of_training_and_test(data: Any, trainer: Make, variant: Any) -> None:
    module = DeepLabModule(3, variant=variant, encoder="resnet18", loss="rmi", class_names=data.class_names)
    run = trainer(max_steps=1)
    run.fit(module, data)
    run.test(module, data, verbose=False)
    assert "test/IoU/blue" in run.callback_metrics


def test_a_batch_of_one_names_batch_size(data: Any, trainer: Make) -> None:
    data.batch_size = 1
    with pytest.raises(ValueError, match="use batch_size of 2 or more"):
        trainer().fit(DeepLabModule(3, encoder="resnet18"), data)


def _assert_plain(value: Any) -> None:
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, list | tuple):
        for entry in value:
            _assert_plain(entry)
    else:
        assert value is None or type(value) in (int, float, str, bool), value


def _weights_file(folder: Path) -> Path:
    torch.save(resnet18().state_dict(), folder / "resnet18.pth")
    return folder / "resnet18.pth"


def _assert_loads(checkpoint: Path, module: LightningModule, num_classes: int) -> None:
    """With weights_only, under the class itself and under nothing but the checkpoint's own values."""
    content = torch.load(checkpoint, weights_only=True)
    _assert_plain(content["hyper_parameters"])
    assert content["hyper_parameters"]["num_classes"] == num_classes
    assert not [name for name in content["hyper_parameters"] if name.startswith("_")]
    loaded = DeepLabModule.load_from_checkpoint(checkpoint, map_location="cpu")
    images = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images), module.eval()(images), rtol=0, atol=0)
    assert loaded.hparams == content["hyper_parameters"]


def test_checkpoint_from_python_loads_without_the_weights_file(data: Any, trainer: Make, tmp_path: Path) -> None:
    weights = _weights_file(tmp_path)
    module = DeepLabModule(
        3,
        encoder="resnet18",
        encoder_weights=weights,  # type: ignore[arg-type]
        loss={"name": "rmi", "region_size": 2},
        atrous_rates=(1, 2, 3),
        class_names=data.class_names,
    )
    run = trainer(max_steps=1)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "last.ckpt")
    weights.unlink()
    _assert_loads(tmp_path / "last.ckpt", module, 3)
    # the record of where the encoder came from is kept
    assert DeepLabModule.load_from_checkpoint(tmp_path / "last.ckpt").hparams["encoder_weights"] == str(weights)


class LinkedCLI(LightningCLI):
    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        parser.link_arguments("data.ignore_index", "model.init_args.ignore_index", apply_on="instantiate")
        parser.link_arguments(
            "data.class_names", "model.init_args.class_names", apply_on="instantiate", compute_fn=list
        )


def _run_cli(data_class: type, folder: Path, *arguments: str) -> LinkedCLI:
    return LinkedCLI(
        SegmentationModule,
        data_class,
        subclass_mode_model=True,
        save_config_callback=None,
        seed_everything_default=0,
        trainer_defaults={
            "default_root_dir": folder,
            "accelerator": "cpu",
            "max_steps": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        args=["fit", "--model=beyondpixel.lightning_modules.DeepLabModule", *arguments],
    )


@pytest.mark.parametrize("loss", ["bce", "{name: rmi, downsampling_factor: 3}"])
def test_checkpoint_from_the_command_line(data: Any, tmp_path: Path, loss: str) -> None:
    weights = _weights_file(tmp_path)
    cli = _run_cli(
        type(data),
        tmp_path,
        "--model.encoder=resnet18",
        f"--model.encoder_weights={weights}",
        f"--model.loss={loss}",
        "--model.atrous_rates=[1,2,3]",
        "--model.lr=0.02",
    )
    cli.trainer.save_checkpoint(tmp_path / "last.ckpt")
    weights.unlink()
    assert cli.model.class_names == ["red", "green", "blue"]
    assert cli.model.hparams["lr"] == 0.02
    _assert_loads(tmp_path / "last.ckpt", cli.model, 3)


def test_optimizer_and_schedule_from_the_command_line(data: Any, tmp_path: Path) -> None:
    cli = _run_cli(
        type(data),
        tmp_path,
        "--model.encoder=resnet18",
        "--model.optimizer=torch.optim.AdamW",
        "--model.optimizer.lr=0.0001",
        "--model.optimizer.weight_decay=0.05",
        "--model.lr_scheduler=torch.optim.lr_scheduler.StepLR",
        "--model.lr_scheduler.step_size=7",
    )
    (optimizer,), (scheduler,) = cli.trainer.optimizers, cli.trainer.lr_scheduler_configs
    assert isinstance(optimizer, torch.optim.AdamW)
    rules = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert rules["encoder/decay"] == (0.0001, 0.05)
    assert rules["encoder/no_decay"] == (0.0001, 0.0)
    assert rules["head/decay"] == (pytest.approx(0.001), 0.05)
    assert scheduler.scheduler.step_size == 7
    cli.trainer.save_checkpoint(tmp_path / "last.ckpt")
    _assert_loads(tmp_path / "last.ckpt", cli.model, 3)


def test_command_line_names_an_unknown_argument(data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _run_cli(type(data), tmp_path, "--model.encoderr=resnet18")
    assert "encoderr" in capsys.readouterr().err
