"""Tiny data and a tiny network: a step takes milliseconds."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from beyondpixel.lightning_modules import SegmentationModule

Sample = dict[str, Any]


class BlobDataModule(LightningDataModule):
    """Images whose brightest channel is the class, 33x47 pixels, with a void border."""

    num_classes = 3
    class_names = ("red", "green", "blue")
    palette = ((200, 40, 40), (40, 160, 60), (50, 80, 200))
    ignore_index = 255
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(self, batch_size: int = 2, train: int = 4, val: int = 2, test: int = 3) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.sizes = {"train": train, "val": val, "test": test}

    def samples(self, split: str) -> list[Sample]:
        generator = torch.Generator().manual_seed(sorted(self.sizes).index(split))
        samples = []
        for index in range(self.sizes[split]):
            coarse = torch.randn(1, 3, 4, 5, generator=generator)
            image = nn.functional.interpolate(coarse, size=(33, 47), mode="bilinear", align_corners=True)[0]
            mask = image.argmax(dim=0)
            mask[0] = mask[:, -1] = 255
            samples.append({"image": image, "mask": mask, "id": f"{split}{index}"})
        return samples

    def _loader(self, split: str) -> DataLoader[Sample]:
        return DataLoader(self.samples(split), batch_size=self.batch_size)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader[Sample]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Sample]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Sample]:
        return self._loader("test")


class TinyNetwork(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images))
        return logits


class TinyModule(SegmentationModule):
    def configure_network(self) -> nn.Module:
        return TinyNetwork(self.num_classes)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data() -> BlobDataModule:
    return BlobDataModule()


@pytest.fixture
def tiny_module() -> Callable[..., SegmentationModule]:
    def make(num_classes: int = 3, **arguments: Any) -> SegmentationModule:
        return TinyModule(num_classes, **arguments)

    return make


@pytest.fixture
def trainer(tmp_path: Any) -> Iterator[Callable[..., Trainer]]:
    """A quiet trainer on the CPU; arguments replace the defaults."""

    def make(**arguments: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "default_root_dir": tmp_path,
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        }
        return Trainer(**{**defaults, **arguments})

    yield make
    # A Trainer and its module refer to each other. Among the million objects of libraries Python hardly ever looks for
    # such cycles, and the tests' process grew to 5 GB.
    gc.collect()
