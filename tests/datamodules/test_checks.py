"""The report on a whole data set."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beyondpixel.datamodules import CamVidDataModule, ShapesDataModule, VOCDataModule
from beyondpixel.datamodules.checks import check


def test_counts_sizes_and_statistics(make_camvid) -> None:
    root = make_camvid({"train": 3, "val": 2, "test": 2})
    (report,) = check(CamVidDataModule(str(root)), ["train"], progress=False)
    images = np.stack([np.asarray(Image.open(path)) for path in sorted((root / "train").iterdir())]) / 255
    masks = np.stack([np.asarray(Image.open(path)) for path in sorted((root / "trainannot").iterdir())])
    assert report.images == 3
    assert report.sizes == {(36, 48): 3}
    np.testing.assert_allclose(report.mean, images.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(report.std, images.std((0, 1, 2)), rtol=1e-9)
    assert [count.name for count in report.classes] == [*CamVidDataModule().class_names, "void"]
    assert [count.pixels for count in report.classes] == [int((masks == label).sum()) for label in range(12)]
    sky, *_, void = report.classes
    assert sky.share == pytest.approx((masks == 0).sum() / (masks < 11).sum())
    assert void.share == pytest.approx((masks == 11).mean())
    assert sky.images == 3


def test_everything_wrong_is_in_the_report_and_nothing_is_raised(make_camvid) -> None:
    root: Path = make_camvid({"train": 30, "val": 2, "test": 3})
    for index in range(25):
        path = root / "trainannot" / f"train_{index:02d}.png"
        path.write_bytes(path.read_bytes()[:60])
    (root / "test" / "test_01.png").unlink()
    (root / "val.txt").unlink()
    train, val, test = check(CamVidDataModule(str(root), train_split="train"), progress=False)
    assert not any(split.ok for split in (train, val, test))
    # all of them, not only the first twenty
    assert len(train.faults) == 25
    assert all("is damaged" in fault and f"train_{index:02d}.png" in fault for index, fault in enumerate(train.faults))
    assert train.images == 5
    assert train.remedy == f"beyondpixel data get camvid --root {root}"
    assert "val.txt is missing" in (val.error or "")
    assert test.faults == [f"{root / 'test' / 'test_01.png'}: is missing"]
    assert test.images == 2


def test_an_image_in_two_splits_is_noted_also_under_another_name(make_camvid) -> None:
    root: Path = make_camvid({"train": 3, "val": 2, "test": 2})
    (root / "test" / "test_01.png").write_bytes((root / "train" / "train_02.png").read_bytes())
    reports = check(CamVidDataModule(str(root), train_split="train"), progress=False)
    assert [report.warnings for report in reports] == [[], [], ["images that are also in train: 1, such as test_01"]]
    assert all(report.ok for report in reports)


def test_absent_classes() -> None:
    names = ["sky", "building", "road", "pavement", "car", "person"]
    data = ShapesDataModule(num_train=1, num_val=40, num_test=1, classes=names, image_size=(48, 64))
    train, val, _ = check(data, progress=False)
    assert set(train.absent_classes) <= {"car", "person"}
    assert val.absent_classes == []


def test_real_camvid_and_voc(shared: Path) -> None:
    (report,) = check(CamVidDataModule(str(shared / "data" / "CamVid")), ["test"], progress=False)
    assert report.ok
    assert report.sizes == {(360, 480): 233}
    # unlabelled is 3.8 to 4 % of train and test, says the authors' data analysis
    assert report.classes[-1].share == pytest.approx(0.04, abs=0.003)
    (voc,) = check(VOCDataModule(str(shared / "data" / "VOC2012")), ["val"], progress=False)
    assert voc.ok
    assert "names 18 of the 1449 images" in voc.warnings[0]
