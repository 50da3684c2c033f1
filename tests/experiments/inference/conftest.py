"""A finished run without the training: a network with random weights that favours different classes here and there."""

import shutil
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer

from beyondpixel.experiments.build import build_all
from beyondpixel.experiments.recorder import identify
from beyondpixel.experiments.resolve import complete
from beyondpixel.experiments.run.folder import RunFolder, Status

NUM_TEST = 5


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Do not change it: `run` is a copy."""
    run = RunFolder(tmp_path_factory.mktemp("outputs") / "tiny" / "ce" / "seed3")
    data = {
        "class_path": "beyondpixel.datamodules.ShapesDataModule",
        "init_args": {"num_test": NUM_TEST, "image_size": [40, 56], "eval_batch_size": 2, "num_workers": 0},
    }
    model = {
        "class_path": "beyondpixel.lightning_modules.DeepLabModule",
        "init_args": {"encoder": "resnet18", "encoder_weights": None, "loss": "bce"},
    }
    trainer = {
        "default_root_dir": str(run.path),
        "max_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    config, errors = complete({"seed_everything": 3, "model": model, "data": data, "trainer": trainer})
    assert not errors
    torch.manual_seed(0)
    module = build_all(config).module
    quiet = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    quiet.strategy.connect(module)
    quiet.save_checkpoint(run.last_checkpoint)
    identify(run, config)
    run.update_state(status=Status.DONE, step=1)
    return run


@pytest.fixture
def run(finished_run: RunFolder, tmp_path: Path) -> RunFolder:
    """A finished run to play with."""
    copy = tmp_path / "outputs" / "tiny" / "ce" / "seed3"
    shutil.copytree(finished_run.path, copy)
    run = RunFolder(copy)
    run.config = {**run.config, "trainer": {**run.config["trainer"], "default_root_dir": str(copy)}}
    return run
