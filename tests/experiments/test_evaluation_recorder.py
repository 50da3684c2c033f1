"""What a test leaves in the run folder, from one process and from two."""

import json
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from beyondpixel.datamodules import ShapesDataModule
from beyondpixel.experiments.bootstrap import mean_interval, resampled_scores
from beyondpixel.experiments.evaluation_recorder import EvaluationRecorder
from beyondpixel.experiments.image_counts import ImageCounts
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.run.provenance import device_name
from beyondpixel.lightning_modules import SegmentationModule


class Pixelwise(SegmentationModule):
    def configure_network(self) -> nn.Module:
        torch.manual_seed(4)
        return nn.Conv2d(3, self.num_classes, kernel_size=3, padding=1)


def _data() -> ShapesDataModule:
    return ShapesDataModule(num_train=4, num_val=3, num_test=5, image_size=(32, 48), batch_size=2, eval_batch_size=2)


def _evaluate(path: Path, stage: str = "test", **arguments: Any) -> RunFolder:
    folder, data = RunFolder(path), _data()
    trainer = Trainer(
        default_root_dir=path,
        accelerator="cpu",
        logger=False,
        callbacks=[EvaluationRecorder(folder)],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, **arguments},
    )
    module = Pixelwise(data.num_classes, class_names=data.class_names)
    getattr(trainer, stage)(module, data, verbose=False)
    return folder


def test_areas_of_each_test_image_are_those_of_the_predictions(tmp_path: Path) -> None:
    folder = _evaluate(tmp_path)
    counts = ImageCounts.load(folder.images_file("test"))
    data, module = _data(), Pixelwise(_data().num_classes).eval()
    data.setup("test")
    place = 0
    for batch in data.test_dataloader():
        with torch.no_grad():
            all_preds = module(batch["image"]).argmax(1).numpy()
        for name, preds, target in zip(batch["id"], all_preds, batch["mask"].numpy(), strict=True):
            assert counts.id[place] == name
            valid = target != 255
            for index in range(data.num_classes):
                assert counts.predicted[place, index] == (valid & (preds == index)).sum()
                assert counts.target[place, index] == (target == index).sum()
                assert counts.intersection[place, index] == ((target == index) & (preds == index)).sum()
            place += 1
    assert len(counts) == place == 5
    assert counts.target.dtype == np.int64
    assert counts.boundary_union is not None
    summary = folder.summary
    assert summary["test/mIoU"] == pytest.approx(counts.mean_iou(), abs=1e-6)
    assert (summary["test/mIoU_low"], summary["test/mIoU_high"]) == pytest.approx(
        mean_interval([resampled_scores(counts)]), abs=1e-6
    )
    assert summary["test/mIoU_low"] < summary["test/mIoU"] < summary["test/mIoU_high"]
    with np.load(folder.confusion_file) as saved:
        np.testing.assert_array_equal(saved["matrix"].diagonal(), counts.intersection.sum(axis=0))
        assert saved["class_names"].tolist() == data.class_names


def test_two_processes_with_unequal_shares_leave_the_same(tmp_path: Path) -> None:
    """Five images on two processes: three on one, two and a void filler on the other."""
    alone = _evaluate(tmp_path / "one")
    together = _evaluate(tmp_path / "two", devices=2, strategy="ddp_fork")
    ours, theirs = (ImageCounts.load(folder.images_file("test")) for folder in (together, alone))
    for name in ("id", "intersection", "predicted", "target", "boundary_intersection", "boundary_union"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert "test/loss" in alone.summary
    assert len(alone.summary) > 20
    assert together.summary == pytest.approx(alone.summary, rel=1e-6, nan_ok=True)


def test_a_validation_on_its_own_is_kept_under_its_own_name(tmp_path: Path) -> None:
    folder = _evaluate(tmp_path, "validate")
    counts = ImageCounts.load(folder.images_file("val"))
    assert len(counts) == 3
    assert counts.boundary_union is None  # scored in tests only, unless asked
    assert (folder.summary["val/mIoU_low"], folder.summary["val/mIoU_high"]) == pytest.approx(
        mean_interval([resampled_scores(counts)]), abs=1e-6
    )
    assert not folder.images_file("test").exists()
    assert not folder.confusion_file.exists()
    folder.clear()
    assert not folder.images_file("val").exists()


def test_a_validation_within_a_training_leaves_nothing(tmp_path: Path) -> None:
    data, folder = _data(), RunFolder(tmp_path)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EvaluationRecorder(folder)],
    )
    trainer.fit(Pixelwise(data.num_classes), data)
    assert "val/mIoU" in trainer.callback_metrics
    assert "val/mIoU_low" not in trainer.callback_metrics
    assert not list(tmp_path.glob("*.npz"))


def test_files_are_json_that_any_reader_takes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.summary = {"test/IoU_large": math.nan, "test/mIoU": 0.5}
    folder.append_metrics({"train/loss": math.inf, "lr": 0.1}, step=3)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"test/IoU_large": None, "test/mIoU": 0.5}
    (line,) = folder.metrics_file.read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"step": 3, "train/loss": None, "lr": 0.1}
    assert math.isnan(folder.summary["test/IoU_large"])
    (figures,) = folder.metrics()
    assert math.isnan(figures["train/loss"])


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux says there what its processor is called")
def test_the_device_has_its_makers_name() -> None:
    names = Path("/proc/cpuinfo").read_text() + platform.processor() + platform.machine()
    assert device_name(torch.device("cpu")) in names
    assert device_name(torch.device("meta")) == "meta"
