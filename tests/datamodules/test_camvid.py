"""CamVid in the SegNet tutorial's layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beyondpixel.datamodules import CamVidDataModule
from beyondpixel.datamodules.datasets.errors import DataError

SMALL = {"train": 3, "val": 2, "test": 2}


def test_classes_are_known_before_the_data_is_there() -> None:
    data = CamVidDataModule("nowhere")
    # Table 4 of the RMI paper
    names = ["sky", "building", "pole", "road", "pavement", "tree"]
    names += ["signsymbol", "fence", "car", "pedestrian", "bicyclist"]
    assert data.class_names == names
    assert data.num_classes == len(data.palette) == 11
    assert data.ignore_index == 255
    # the SegNet tutorial's colors
    colors = [(128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)]
    colors += [(192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)]
    assert data.palette == colors
    authors = CamVidDataModule("nowhere", variant="12")
    assert authors.palette == [*colors, (0, 0, 0)]
    assert authors.class_names == [*names, "unlabelled"]
    assert authors.num_classes == len(authors.palette) == 12
    assert (data.classes_excluded_from_mean, authors.classes_excluded_from_mean) == ((), ("unlabelled",))


@pytest.mark.parametrize(("variant", "unlabelled"), [("11", 255), ("12", 11)])
def test_labels(make_camvid, variant: str, unlabelled: int) -> None:
    root = make_camvid(SMALL)
    data = CamVidDataModule(str(root), variant=variant)
    sample = data.dataset("test")[1]
    stored = np.asarray(Image.open(root / "testannot" / "test_01.png"))
    expected = stored.copy()
    expected[stored == 11] = unlabelled
    assert sample.id == "test_01"
    np.testing.assert_array_equal(sample.mask, expected)
    np.testing.assert_array_equal(sample.image, np.asarray(Image.open(root / "test" / "test_01.png")))


def test_evaluation_batches_are_the_normalized_images(make_camvid) -> None:
    root = make_camvid(SMALL)
    data = CamVidDataModule(str(root), eval_batch_size=2)
    (batch,) = data.test_dataloader()
    stored = np.stack([np.asarray(Image.open(root / "test" / f"test_0{i}.png"), dtype=np.float64) for i in (0, 1)])
    expected = (stored - [100, 103, 106]) / [75.61, 77.81, 76.70]
    assert batch["image"].dtype == torch.float32
    assert batch["mask"].dtype == torch.int64
    assert batch["id"] == ["test_00", "test_01"]
    np.testing.assert_allclose(batch["image"].numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert batch["mask"].shape == (2, 36, 48)


def test_trainval_holds_nothing_out(make_camvid) -> None:
    root = str(make_camvid(SMALL))
    data = CamVidDataModule(root, crop_size=32, batch_size=5)
    (batch,) = data.train_dataloader()
    assert sorted(batch["id"]) == ["train_00", "train_01", "train_02", "val_00", "val_01"]
    assert batch["image"].shape == (5, 3, 32, 32)
    assert data.val_dataloader() == []
    held_out = CamVidDataModule(root, train_split="train", crop_size=32, batch_size=3)
    assert [batch["id"] for batch in held_out.val_dataloader()] == [["val_00", "val_01"]]
    assert [len(batch["id"]) for batch in held_out.train_dataloader()] == [3]


def test_image_size_shrinks_truth_and_evaluation(make_camvid) -> None:
    root = make_camvid(SMALL)
    data = CamVidDataModule(
        str(root), image_size=(18, 24), crop_size=None, resampling="area_cubic", batch_size=1, num_workers=0
    )
    image, mask = data.dataset("test")[0].image, data.dataset("test")[0].mask
    full = np.asarray(Image.open(root / "test" / "test_00.png"), dtype=np.float64)
    # area averaging at half size is the mean of 2x2 pixels
    means = full.reshape(18, 2, 24, 2, 3).mean((1, 3))
    assert np.abs(image - means).max() <= 0.51
    labels = np.asarray(Image.open(root / "testannot" / "test_00.png"))
    cells = labels.reshape(18, 2, 24, 2).transpose(0, 2, 1, 3).reshape(18, 24, 4)
    cells = np.where(cells == 11, 255, cells)
    assert mask is not None
    assert (cells == mask[..., None]).any(-1).all()
    (batch, *_) = data.train_dataloader()
    assert batch["image"].shape == (1, 3, 18, 24)
    (batch, *_) = data.test_dataloader()
    assert batch["mask"].shape == (2, 18, 24)


def test_missing_folder() -> None:
    with pytest.raises(DataError) as caught:
        CamVidDataModule("no/such/folder").setup("fit")
    message = str(caught.value)
    assert "There is no folder no/such/folder" in message
    assert "train.txt" in message
    assert "beyondpixel data get camvid --root no/such/folder" in message


def test_half_empty_folder_lists_all_missing_files(make_camvid) -> None:
    root = make_camvid({"train": 30, "val": 1, "test": 1})
    for index in range(5, 30):
        (root / "trainannot" / f"train_{index:02d}.png").unlink()
    with pytest.raises(DataError) as caught:
        CamVidDataModule(str(root)).setup("fit")
    message = str(caught.value)
    assert "25 of 62 files are missing" in message
    assert str(root / "trainannot" / "train_05.png") in message
    assert message.count("trainannot") == 20
    assert "and 5 more (25 in all)" in message


def test_shortened_list(make_camvid) -> None:
    root = make_camvid(SMALL)
    (root / "test.txt").write_text((root / "test.txt").read_text().splitlines()[0])
    with pytest.raises(DataError, match=r"CamVid test in .* has 1 images\.\nExpected: 2\."):
        CamVidDataModule(str(root)).setup("test")


def test_list_that_is_not_understood(make_camvid) -> None:
    root = make_camvid(SMALL)
    (root / "test.txt").write_text("/SegNet/CamVid/test/test_00.png\n")
    with pytest.raises(DataError, match=r"has invalid lines:\n  /SegNet/CamVid/test/test_00\.png"):
        CamVidDataModule(str(root)).setup("test")


def test_unknown_label(make_camvid) -> None:
    root = make_camvid(SMALL)
    path = root / "testannot" / "test_01.png"
    mask = np.asarray(Image.open(path)).copy()
    mask[0, :2] = 37
    Image.fromarray(mask).save(path)
    with pytest.raises(DataError, match=r"test_01\.png: holds label 37 \(2 pixels\); allowed are labels 0-11"):
        list(CamVidDataModule(str(root), eval_batch_size=2).test_dataloader())


def test_mask_of_another_size(make_camvid) -> None:
    root = make_camvid(SMALL)
    path = root / "testannot" / "test_00.png"
    Image.fromarray(np.zeros((20, 30), dtype=np.uint8)).save(path)
    with pytest.raises(DataError, match=r"testannot.test_00\.png: is 30x20, but its image test_00\.png is 48x36"):
        _ = CamVidDataModule(str(root)).dataset("test")[0]


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match='variant must be "11"'):
        CamVidDataModule(variant="13")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"train_split must be .* got 'test'"):
        CamVidDataModule(train_split="test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no split 'tests'; it has train, val, test, trainval"):
        CamVidDataModule().dataset("tests")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        CamVidDataModule(batch_size=0)
    with pytest.raises(ValueError, match="scales must be the lowest and the highest factor"):
        CamVidDataModule(scales=(1.5, 0.5))


def test_predictions_have_no_truth(make_camvid, tmp_path: Path) -> None:
    root = str(make_camvid(SMALL))
    (batch,) = CamVidDataModule(root).predict_dataloader()
    assert set(batch) == {"image", "id"}
    pictures = tmp_path / "photos"
    pictures.mkdir()
    Image.new("L", (7, 5), 9).save(pictures / "b.png")
    Image.new("RGBA", (9, 5)).save(pictures / "a.PNG")
    (pictures / "notes.txt").write_text("not a picture")
    batches = list(CamVidDataModule("nowhere", predict_path=str(pictures)).predict_dataloader())
    assert [(batch["id"], tuple(batch["image"].shape)) for batch in batches] == [
        (["a"], (1, 3, 5, 9)),
        (["b"], (1, 3, 5, 7)),
    ]
    with pytest.raises(DataError, match="does not exist"):
        CamVidDataModule(predict_path=str(tmp_path / "none")).predict_dataloader()


def test_real_camvid(shared: Path) -> None:
    data = CamVidDataModule(str(shared / "data" / "CamVid"), variant="12", crop_size=479, batch_size=4, num_workers=0)
    data.setup()
    assert [len(data.dataset(split)) for split in ("train", "val", "test", "trainval")] == [367, 101, 233, 468]
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 479, 479)
    # 360 rows times at most 1.25 leave rows to pad, of the mean color, which is void
    padded = batch["mask"][:, 460:] == 255
    assert padded.all()
    assert batch["image"][:, :, 460:].abs().max() < 0.01
    assert data.dataset("test")[0].image.shape == (360, 480, 3)
