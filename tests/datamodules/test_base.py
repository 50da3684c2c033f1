"""What all data modules share, with a real Trainer and a real argument parser."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from beyondpixel.datamodules import (
    CamVidDataModule,
    FolderDataModule,
    SegmentationDataModule,
    ShapesDataModule,
    VOCDataModule,
)
from beyondpixel.datamodules.loading import default_workers

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:Total length of"),
]


class Keeper(pl.LightningModule):
    """Keeps the batches of each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.batches: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "predict": []}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.batches["train"].append(batch)
        return (self.weight * batch["image"].mean()).sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.batches["val"].append(batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.batches["predict"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**arguments: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **arguments)


class Watched(ShapesDataModule):
    """Notes what arrives from the loader, before it goes to the device."""

    arrived: set[torch.dtype]

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        self.arrived |= {batch["image"].dtype, batch["mask"].dtype}
        return batch


def test_a_trainer_gets_what_a_plain_loop_gets_but_moves_eight_bits() -> None:
    size: dict[str, Any] = {"num_train": 6, "num_val": 3, "image_size": (12, 16), "batch_size": 2, "num_workers": 0}
    data = Watched(**size)
    data.arrived = set()
    model = Keeper()
    trainer(max_epochs=1).fit(model, data)
    assert data.arrived == {torch.uint8}
    plain = ShapesDataModule(**size)
    for stage, loader in (("train", plain.train_dataloader()), ("val", plain.val_dataloader())):
        for inside, outside in zip(model.batches[stage], loader, strict=True):
            assert inside["id"] == outside["id"]
            assert (inside["image"].dtype, inside["mask"].dtype) == (torch.float32, torch.int64)
            assert torch.equal(inside["image"], outside["image"])
            assert torch.equal(inside["mask"], outside["mask"])
            assert inside["image"].is_contiguous()


def test_after_a_run_the_loaders_are_plain_again() -> None:
    data = ShapesDataModule(num_train=8, num_val=1, image_size=(12, 16), batch_size=2, num_workers=0)
    model = Keeper()
    trainer(max_steps=2).fit(model, data)
    batches = list(data.train_dataloader())
    # the run stopped in the middle of its epoch, which is no reason to begin there
    assert [batch["id"] for batch in batches[:2]] == [batch["id"] for batch in model.batches["train"]]
    assert len(batches) == 4
    assert batches[0]["image"].dtype == torch.float32


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("bf16-mixed", torch.float32)])
def test_precision(precision: str, dtype: torch.dtype) -> None:
    model = Keeper()
    data = ShapesDataModule(num_train=2, num_val=1, image_size=(12, 16), batch_size=2, num_workers=0)
    trainer(max_epochs=1, precision=precision).fit(model, data)
    assert model.batches["train"][0]["image"].dtype == dtype
    assert model.batches["train"][0]["mask"].dtype == torch.int64


def test_training_without_held_out_images(make_camvid) -> None:
    root = make_camvid({"train": 3, "val": 2, "test": 2})
    model = Keeper()
    data = CamVidDataModule(str(root), crop_size=16, batch_size=2, num_workers=0)
    trainer(max_epochs=1).fit(model, data)
    assert len(model.batches["train"]) == 2
    assert model.batches["val"] == []


def test_predicting_and_overfitting() -> None:
    model = Keeper()
    data = ShapesDataModule(num_train=6, num_test=3, image_size=(12, 16), batch_size=2, num_workers=0)
    trainer().predict(model, data)
    assert [set(batch) for batch in model.batches["predict"]] == [{"image", "id"}]
    # Lightning replaces the sampler here; the same batch comes again and again
    trainer(max_epochs=3, overfit_batches=1).fit(model, data)
    first, second, third = model.batches["train"]
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(second["image"], third["image"])


def test_cached_batches_are_the_same(make_camvid) -> None:
    root = str(make_camvid({"train": 5, "val": 2, "test": 2}))
    common: dict[str, Any] = {"crop_size": 24, "batch_size": 2, "num_workers": 0, "image_size": (18, 24)}
    direct = CamVidDataModule(root, **common).train_dataloader()
    cached = CamVidDataModule(root, cache="ram", **common).train_dataloader()
    for _ in range(2):
        for one, other in zip(direct, cached, strict=True):
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["mask"], other["mask"])


def test_the_cache_reads_each_file_once(make_camvid) -> None:
    root: Path = make_camvid({"train": 3, "val": 1, "test": 1})
    data = CamVidDataModule(str(root), cache="ram", crop_size=16, batch_size=2, num_workers=0)
    loader = data.train_dataloader()
    for path in (root / "train").iterdir():
        path.unlink()
    assert len(list(loader)) == 2


def parse(yaml: str) -> SegmentationDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SegmentationDataModule, "data")
    data = parser.instantiate(parser.parse_string(yaml)).data
    assert isinstance(data, SegmentationDataModule)
    return data


def test_made_from_yaml() -> None:
    data = parse(
        """
        data:
          class_path: beyondpixel.datamodules.CamVidDataModule
          init_args: {root: some/where, variant: 12, image_size: [180, 240], crop_size: 176, scales: [0.5, 1.5]}
        """
    )
    assert isinstance(data, CamVidDataModule)
    assert (data.variant, data.num_classes, data.image_size, data.crop_size) == ("12", 12, (180, 240), (176, 176))
    data = parse(
        """
        data:
          class_path: beyondpixel.datamodules.VOCDataModule
          init_args: {train_split: train, crop_size: [321, 481], cache: ram, on_error: skip, num_workers: 3}
        """
    )
    assert isinstance(data, VOCDataModule)
    assert (data.crop_size, data.cache, data.on_error, data.num_workers) == ((321, 481), "ram", "skip", 3)
    assert data.scales == (0.5, 2.0)


@pytest.mark.parametrize("kind", [CamVidDataModule, FolderDataModule, ShapesDataModule, VOCDataModule])
def test_help_explains_every_argument(kind: type[SegmentationDataModule], capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(kind, "data")
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help={kind.__module__}.{kind.__name__}"])
    text = " ".join(capsys.readouterr().out.split())
    # one of the data module's own arguments and two of the shared ones
    assert "Images per training step over all processes; each gets an equal share." in text
    assert "keeps all decoded images in memory" in text or "keeps the scenes" in text
    options = [option for option in text.split("Help for")[1].split("--data.") if "(type:" in option]
    assert len(options) >= 15
    assert all(len(option.split("(type:")[0].split()) > 2 for option in options), options


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, 1, 0), (2, 1, 0), (4, 1, 3), (16, 1, 8), (16, 4, 3), (64, 8, 7)]
)
def test_default_workers(monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, workers: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert default_workers(processes) == workers
