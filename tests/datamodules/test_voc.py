"""PASCAL VOC 2012 in its public layout."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beyondpixel.datamodules import VOCDataModule, voc
from beyondpixel.datamodules.datasets.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*this is a subset:UserWarning")
SIZES = [(40, 50), (30, 44), (52, 36), (40, 50)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images of different sizes; trainaug has two more masks than train."""
    folder = tmp_path / "VOC2012"
    rng = np.random.default_rng(0)
    for name in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for index, size in enumerate(SIZES):
        name = f"2007_00000{index}"
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(rng.choice([0, 5, 20, 255], size).astype(np.uint8))
        mask.save(folder / "SegmentationClassAug" / f"{name}.png")
        mask.putpalette([value for color in voc.voc_palette(256) for value in color])
        mask.save(folder / "SegmentationClass" / f"{name}.png")
    lists = folder / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("2007_000000\n2007_000001\n")
    (lists / "val.txt").write_text("2007_000002\n2007_000003\n")
    (lists / "trainaug.txt").write_text(
        "/JPEGImages/2007_000000.jpg /SegmentationClassAug/2007_000000.png\n2007_000001\n2007_000003\n"
    )
    (lists / "test.txt").write_text("2007_000001\n")
    return folder


def test_classes_and_palette() -> None:
    data = VOCDataModule("nowhere")
    assert data.num_classes == 21
    assert data.class_names[15] == "person"
    # VOC's published color map
    known = {0: (0, 0, 0), 1: (128, 0, 0), 5: (128, 0, 128), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {index: data.palette[index] for index in known} == known


def test_palette_masks_are_indices_and_255_is_void(root: Path) -> None:
    data = VOCDataModule(str(root), train_split="train")
    for split in ("train", "val", "trainaug"):
        for sample in data.dataset(split):
            stored = np.asarray(Image.open(root / "SegmentationClass" / f"{sample.id}.png"))
            np.testing.assert_array_equal(sample.mask, stored)
            assert set(np.unique(stored)) == {0, 5, 20, 255}
    assert data.dataset("trainaug").ids == ["2007_000000", "2007_000001", "2007_000003"]
    assert data.dataset("test")[0].mask is None


@pytest.mark.parametrize("above", ["VOC2012", "VOCdevkit/VOC2012"])
def test_root_may_be_the_folder_above(root: Path, tmp_path: Path, above: str) -> None:
    target = tmp_path / "other" / above
    target.parent.mkdir(parents=True)
    root.rename(target)
    assert len(VOCDataModule(str(tmp_path / "other")).dataset("val")) == 2


def test_training_crops(root: Path) -> None:
    data = VOCDataModule(str(root), batch_size=3, crop_size=64)
    (batch,) = data.train_dataloader()
    assert batch["image"].shape == (3, 3, 64, 64)
    assert set(batch["mask"].unique().tolist()) <= {0, 5, 20, 255}


def test_subset_warns_with_the_numbers(root: Path) -> None:
    with pytest.warns(UserWarning, match="names 2 of the 1449 images of VOC 2012 val: this is a subset"):
        VOCDataModule(str(root)).setup("validate")


def test_full_lists_do_not_warn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voc, "COUNTS", {"train": 2, "trainaug": 3, "val": 2, "trainval": 4, "test": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VOCDataModule(str(root)).setup()
    monkeypatch.setattr(voc, "COUNTS", {"val": 1})
    with pytest.raises(DataError, match="names 2 images"):
        VOCDataModule(str(root)).setup("validate")


def test_a_name_that_is_listed_twice(root: Path) -> None:
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_000002\n2007_000002\n")
    with pytest.raises(DataError, match=r"names 2 images, some of them twice:\n  2007_000002"):
        VOCDataModule(str(root)).dataset("val")


def test_trainaug_that_was_not_built(root: Path) -> None:
    (root / "ImageSets/Segmentation/trainaug.txt").unlink()
    with pytest.raises(DataError, match=r"trainaug\.txt is missing(.|\n)*beyondpixel data get sbd --root"):
        VOCDataModule(str(root)).setup("fit")


def test_half_extracted_archive(root: Path) -> None:
    (root / "JPEGImages/2007_000002.jpg").unlink()
    with pytest.raises(DataError) as caught:
        VOCDataModule(str(root)).setup("validate")
    assert "1 of 4 files are missing" in str(caught.value)
    assert str(root / "JPEGImages/2007_000002.jpg") in str(caught.value)
    assert "beyondpixel data get voc --root" in str(caught.value)
    with pytest.raises(DataError, match="There is no folder"):
        VOCDataModule(str(root / "none")).setup("fit")


def test_images_are_normalized_with_the_authors_numbers(root: Path) -> None:
    data = VOCDataModule(str(root))
    batch = next(iter(data.val_dataloader()))
    image = data.dataset("val")[0].image.astype(np.float64)
    expected = (image - [116, 113, 104]) / [69.58, 68.68, 72.67]
    np.testing.assert_allclose(batch["image"][0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


class Stripes(torch.nn.Module):
    """A fixed pixel-wise classifier, so that padding cannot change a prediction."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return ((image.sum(1) > 0).long() * 5) + (image[:, 0] > 1).long() * 15


def test_padded_evaluation_batches_give_the_same_confusion(root: Path) -> None:
    def confusion(eval_batch_size: int) -> np.ndarray:
        data = VOCDataModule(str(root), eval_batch_size=eval_batch_size)
        total = np.zeros((21, 21), dtype=np.int64)
        for batch in data.val_dataloader():
            predicted = Stripes()(batch["image"])
            valid = batch["mask"] != 255
            np.add.at(total, (batch["mask"][valid].numpy(), predicted[valid].numpy()), 1)
        return total

    alone = confusion(1)
    assert alone.sum() > 2000
    np.testing.assert_array_equal(confusion(2), alone)


def test_real_images(shared: Path) -> None:
    data = VOCDataModule(str(shared / "data" / "VOC2012"), batch_size=4, num_workers=0)
    assert [len(data.dataset(split)) for split in ("train", "val", "trainaug", "trainval")] == [22, 18, 28, 40]
    seen = set()
    for sample in data.dataset("trainval"):
        assert sample.image.shape[:2] == sample.mask.shape
        seen |= set(np.unique(sample.mask).tolist())
    assert seen == {*range(21), 255}
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 513, 513)
    # normalized with the data set's own statistics: near zero mean and unit deviation, padding aside
    real = batch["image"][(batch["mask"] != 255)[:, None].expand_as(batch["image"])]
    assert abs(real.mean()) < 0.6
    assert 0.6 < real.std() < 1.5


def test_splits_that_cannot_be_trained_or_tested_on(root: Path) -> None:
    with pytest.raises(ValueError, match="train_split must be one of 'trainaug', 'train', 'trainval', got 'test'"):
        VOCDataModule(str(root), train_split="test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="test_split must be one of 'val', 'test', got 'train'"):
        VOCDataModule(str(root), test_split="train")  # type: ignore[arg-type]
