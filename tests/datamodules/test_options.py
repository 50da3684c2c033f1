"""Options that need more than one number, and the defaults of each class."""

import inspect
from typing import Any

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from beyondpixel.datamodules import CamVidDataModule, FolderDataModule, ShapesDataModule, VOCDataModule
from beyondpixel.datamodules.datasets.errors import DataError


class TwelveProcesses:
    """What a data module asks of a Trainer."""

    world_size, num_devices, global_rank = 12, 12, 0
    state = pl.trainer.states.TrainerState()


def test_batch_size_is_the_total() -> None:
    data = ShapesDataModule(num_train=24, image_size=(12, 16), batch_size=24, num_workers=0)
    assert data.batch_size_per_process == 24
    data.trainer = TwelveProcesses()  # type: ignore[assignment]
    assert data.batch_size_per_process == 2
    assert [len(batch["id"]) for batch in data.train_dataloader()] == [2]


@pytest.mark.parametrize(
    ("batch_size", "remedy"),
    [
        (16, "use --data.batch_size 12 or 24, or 8 processes instead of 12"),
        (7, "use --data.batch_size 12, or 7 processes instead of 12"),
        (13, "use --data.batch_size 12 or 24, or 1 process instead of 12"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_before_anything_is_read(batch_size: int, remedy: str) -> None:
    data = VOCDataModule("nowhere", batch_size=batch_size)
    data.trainer = TwelveProcesses()  # type: ignore[assignment]
    with pytest.raises(DataError) as caught:
        data.setup("fit")
    assert f"batch_size {batch_size} is not divisible by 12 processes" in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_max_class_share": 75}, "crop_max_class_share must be above 0 and at most 1, or None, got 75"),
        ({"resampling": "cubic"}, "resampling must be one of 'area_cubic', 'linear', 'bicubic_antialias', got 'cubic'"),
        ({"normalization": "none"}, "normalization must be one of 'dataset', 'imagenet', 'inception', got 'none'"),
        ({"timeout": 0}, "timeout must be a positive number of seconds, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, or None to choose, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"scale_step": -1}, "scale_step must be positive"),
        ({"image_size": (180, 240)}, r"crop_size \(479, 479\) is larger than every image: .* at most \(225, 300\)"),
    ],
)
def test_bad_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CamVidDataModule("nowhere", **arguments)


def test_defaults_are_those_of_the_papers_and_stand_in_the_signature() -> None:
    def defaults(cls: type) -> dict[str, Any]:
        parameters = inspect.signature(cls).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    camvid, voc = defaults(CamVidDataModule), defaults(VOCDataModule)
    assert (camvid["crop_size"], camvid["scales"], camvid["resampling"]) == (479, (0.75, 1.25), "bicubic_antialias")
    assert (voc["crop_size"], voc["scales"], voc["scale_step"]) == (513, (0.5, 2.0), 0.25)
    assert voc["resampling"] == "bicubic_antialias"
    for cls in (CamVidDataModule, VOCDataModule, ShapesDataModule):
        data = cls()
        for name, value in defaults(cls).items():
            expected = (value, value) if name == "crop_size" and isinstance(value, int) else value
            if name not in ("classes", "num_train", "num_val", "num_test") and expected is not None:
                assert getattr(data, name) == expected, (cls, name)


SIZE: dict[str, Any] = {"num_train": 40, "image_size": (24, 32), "batch_size": 40, "num_workers": 0}
SIZE |= {"scales": (1.0, 1.0), "flip": False}


def training_batch(**arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images and masks of an epoch, and those that they were made of, normalized as well."""
    data = ShapesDataModule(**{**SIZE, **arguments})
    (batch,) = data.train_dataloader()
    dataset = data.dataset("train")
    samples = [dataset[dataset.ids.index(name)] for name in batch["id"]]
    images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([sample.mask for sample in samples])).long()
    return batch["image"], batch["mask"], data.normalize({"image": images})["image"], masks


def test_training_images_are_mirrored_and_distorted_where_asked() -> None:
    image, mask, stored, labels = training_batch()
    assert torch.equal(image, stored)
    assert torch.equal(mask, labels)
    image, mask, stored, labels = training_batch(flip=True)
    mirrored = [bool((one == other.flip(-1)).all()) for one, other in zip(mask, labels, strict=True)]
    assert 8 < sum(mirrored) < 32  # each sample by itself: 20 expected, standard deviation 3
    assert torch.equal(image, torch.where(torch.tensor(mirrored).view(-1, 1, 1, 1), stored.flip(-1), stored))
    image, mask, stored, labels = training_batch(photometric_distortion=True)
    assert torch.equal(mask, labels)
    assert sum(not torch.equal(one, other) for one, other in zip(image, stored, strict=True)) > 20


def test_training_images_are_rescaled_as_asked() -> None:
    enlarged = {"scales": (1.0, 2.0), "scale_step": 1.0, "crop_size": (48, 64), "resampling": "linear"}
    image, mask, _, labels = training_batch(**enlarged)
    heights = (mask != 255).any(2).sum(1)
    assert set(heights.tolist()) == {24, 48}
    number = int((heights == 48).nonzero()[0])
    assert torch.equal(mask[number, 1::2, 1::2], labels[number])
    data = ShapesDataModule(**SIZE)
    (index,) = [
        i for i in range(40) if torch.equal(torch.from_numpy(data.dataset("train")[i].mask).long(), labels[number])
    ]
    expected = cv2.resize(data.dataset("train")[index].image, (64, 48), interpolation=cv2.INTER_LINEAR)
    normalized = (expected / 255 - np.array(data.mean)) / np.array(data.std)
    np.testing.assert_allclose(image[number].permute(1, 2, 0).numpy(), normalized, atol=1e-5)


def test_crops_show_more_than_one_class_where_asked() -> None:
    def of_one_class(**arguments: Any) -> int:
        _, mask, _, _ = training_batch(crop_size=8, **arguments)
        shares = [max(one.flatten().bincount()) / one.numel() for one in mask]
        return sum(bool(share >= 0.75) for share in shares)

    # most scenes have a border of two classes somewhere that ten attempts find
    assert of_one_class(crop_max_class_share=0.75) < 0.6 * of_one_class()


def test_imagenet_normalization(tmp_path) -> None:
    data = ShapesDataModule(num_test=1, image_size=(12, 16), normalization="imagenet", num_workers=0)
    (batch,) = data.test_dataloader()
    image = torch.from_numpy(data.dataset("test")[0].image.copy()).permute(2, 0, 1).double() / 255
    expected = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    torch.testing.assert_close(batch["image"][0].double(), expected, atol=1e-5, rtol=0)
    (tmp_path / "classes.yaml").write_text("mean: [0.1, 0.2, 0.3]\nclasses:\n  - {name: a, color: [0, 0, 0]}\n")
    assert FolderDataModule(str(tmp_path)).mean == (0.1, 0.2, 0.3)
    assert FolderDataModule(str(tmp_path), normalization="imagenet").mean == (0.485, 0.456, 0.406)


def test_inception_normalization_maps_8_bits_to_minus_one_to_one() -> None:
    data = ShapesDataModule(num_test=1, image_size=(12, 16), normalization="inception", num_workers=0)
    (batch,) = data.test_dataloader()
    image = torch.from_numpy(data.dataset("test")[0].image.copy()).permute(2, 0, 1).double()
    torch.testing.assert_close(batch["image"][0].double(), image / 127.5 - 1, atol=1e-5, rtol=0)
