"""The hash of a split's content."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beyondpixel.datamodules import CamVidDataModule, ShapesDataModule, VOCDataModule
from beyondpixel.datamodules.datasets.files import FileDataset, Pair
from beyondpixel.datamodules.datasets.labels import LabelTable

SMALL = {"train": 3, "val": 2, "test": 2}


def test_it_does_not_depend_on_where_the_data_is_or_what_is_made_of_it(make_camvid, tmp_path: Path) -> None:
    root = make_camvid(SMALL)
    prints = {split: CamVidDataModule(str(root)).fingerprint(split) for split in ("train", "val", "test", "trainval")}
    assert len(set(prints.values())) == 4
    copy, link = tmp_path / "elsewhere" / "copy", tmp_path / "link"
    shutil.copytree(root, copy)
    link.symlink_to(root)
    (copy / "train" / "train_00.png").touch()
    (copy / "test" / "test_00.png").unlink()
    (copy / "test" / "test_00.png").symlink_to(root / "test" / "test_00.png")
    for other in (
        CamVidDataModule(str(copy)),
        CamVidDataModule(str(link), variant="12", image_size=(18, 24), crop_size=9),
    ):
        assert {split: other.fingerprint(split) for split in prints} == prints


@pytest.mark.parametrize("change", ["label", "image", "order", "name"])
def test_it_depends_on_content(make_camvid, change: str) -> None:
    root = make_camvid(SMALL)
    before = CamVidDataModule(str(root)).fingerprint("train")
    mask, image, listing = root / "trainannot" / "train_01.png", root / "train" / "train_01.png", root / "train.txt"
    if change == "label":
        array = np.asarray(Image.open(mask)).copy()
        array[0, 0] = (array[0, 0] + 1) % 11
        Image.fromarray(array).save(mask)
    elif change == "image":
        content = bytearray(image.read_bytes())
        content[-9] ^= 1
        image.write_bytes(content)
    elif change == "order":
        listing.write_text("".join(reversed(listing.read_text().splitlines(keepends=True))))
    else:
        image.rename(image.with_name("other.png"))
        listing.write_text(listing.read_text().replace("train/train_01.png", "train/other.png"))
    assert CamVidDataModule(str(root)).fingerprint("train") != before


def test_it_depends_on_the_size_of_an_image_too_large_to_be_read_whole(tmp_path: Path) -> None:
    prints = set()
    for length in (9000, 9001):
        (tmp_path / "a.jpg").write_bytes(bytes(length))
        pairs = [Pair("a", tmp_path / "a.jpg", None)]
        prints.add(FileDataset(pairs, LabelTable({0: 0, 1: 1, 255: 255}), name="", remedy="").fingerprint())
    assert len(prints) == 2


def test_generated_scenes() -> None:
    data = ShapesDataModule(num_train=4, num_val=4)
    assert data.fingerprint("train") == ShapesDataModule(num_train=4, batch_size=1, seed=3).fingerprint("train")
    others = [
        data.fingerprint("val"),
        ShapesDataModule(num_train=5).fingerprint("train"),
        ShapesDataModule(num_train=4, scene_seed=1).fingerprint("train"),
        ShapesDataModule(num_train=4, thickness=2.0).fingerprint("train"),
    ]
    assert len({data.fingerprint("train"), *others}) == 5


def test_real_data(shared: Path) -> None:
    data = CamVidDataModule(str(shared / "data" / "CamVid"))
    assert data.fingerprint("test") == data.fingerprint("test") != data.fingerprint("trainval")
    with pytest.warns(UserWarning, match="this is a subset"):
        assert len(VOCDataModule(str(shared / "data" / "VOC2012")).fingerprint("val")) == 16
    with pytest.raises(ValueError, match="no split 'tests'"):
        data.fingerprint("tests")
