"""What the recorder notices when a run goes on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from beyondpixel.datamodules import ShapesDataModule
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.recorder import RunRecorder, identify
from beyondpixel.experiments.run.folder import RunFolder


def begin(folder: RunFolder, data: ShapesDataModule, *, resumed: bool) -> None:
    part: dict[str, Any] = {"class_path": "a.Class", "init_args": {}}
    config = {"seed_everything": 1, "model": part, "data": part, "trainer": {}}
    trainer: Any = SimpleNamespace(
        is_global_zero=True,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        datamodule=data,
        ckpt_path="last.ckpt" if resumed else None,
        world_size=1,
    )
    module: Any = None
    RunRecorder(folder, identify(folder, config, resumed=resumed)).setup(trainer, module, "fit")


def test_a_run_goes_on_with_the_data_that_it_was_begun_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    begin(folder, ShapesDataModule(num_train=8), resumed=False)
    begun = folder.record["data"]["fingerprint"]
    begin(folder, ShapesDataModule(num_train=8, batch_size=2), resumed=True)  # the same scenes
    with pytest.raises(UserError, match=f"was started on other images or masks .fingerprint {begun}, now .*data.root"):
        begin(folder, ShapesDataModule(num_train=9), resumed=True)
    assert folder.record["data"]["fingerprint"] == begun
    begin(folder, ShapesDataModule(num_train=9), resumed=False)  # as with --overwrite
    assert folder.record["data"]["fingerprint"] != begun
