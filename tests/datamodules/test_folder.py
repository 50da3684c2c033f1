"""A user's own images and masks."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beyondpixel.datamodules import FolderDataModule
from beyondpixel.datamodules.datasets.class_file import EXAMPLE
from beyondpixel.datamodules.datasets.errors import DataError
from beyondpixel.datamodules.datasets.images import image_dataset

COLORS = np.array([[0, 0, 0], [0, 160, 0], [200, 30, 30]], dtype=np.uint8)
CLASSES = """\
masks: {masks}
classes:
  - {{name: background, color: [0, 0, 0]}}
  - {{name: leaf, color: [0, 160, 0]}}
  - {{name: fruit, color: [200, 30, 30]}}
{more}
"""


def write(
    root: Path, *, splits: bool = True, masks: str = "index", more: str = "", count: int = 3, suffix: str = ""
) -> None:
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    (root / "classes.yaml").write_text(CLASSES.format(masks=masks, more=more))
    for split in ("train", "val", "test"):
        below = split if splits else ""
        for folder in ("images", "masks"):
            (root / folder / below).mkdir(parents=True, exist_ok=True)
        names = [f"{split}{index}" for index in range(count)]
        for name in names:
            image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            mask = rng.integers(0, 3, (24, 32), dtype=np.uint8)
            Image.fromarray(image).save(root / "images" / below / f"{name}.jpg")
            stored = mask if masks == "index" else COLORS[mask]
            Image.fromarray(stored).save(root / "masks" / below / f"{name}{suffix}.png")
        if not splits:
            (root / f"{split}.txt").write_text("".join(f"{name}.jpg\n" for name in names[:-1]) + names[-1])


def spoil_everything(root: Path) -> dict[str, str]:
    """One bad file of each kind among the training files; what the error says of each."""
    images, masks = root / "images" / "train", root / "masks" / "train"
    rng = np.random.default_rng(1)

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, shape, dtype=np.uint8)

    data = (images / "train0.jpg").read_bytes()
    (images / "train0.jpg").write_bytes(data[: len(data) * 3 // 4])
    Image.fromarray(noise(24, 32)).save(images / "train1.jpg")
    (images / "train2.jpg").unlink()
    Image.fromarray(noise(24, 32, 4)).save(images / "train2.png")
    (images / "train3.jpg").unlink()
    Image.fromarray(np.full((24, 32), 40000, dtype=np.uint16)).save(images / "train3.png")
    rotated = Image.fromarray(noise(24, 32, 3))
    rotated.getexif()[0x0112] = 6
    rotated.save(images / "train4.jpg", exif=rotated.getexif())
    Image.fromarray(noise(24, 32, 3)).save(masks / "train5.png")
    Image.fromarray(np.zeros((24, 31), dtype=np.uint8)).save(masks / "train6.png")
    Image.fromarray(np.full((24, 32), 3, dtype=np.uint8)).save(masks / "train7.png")
    (masks / "train8.png").unlink()
    (images / "train9.jpg").write_text("not an image")
    return {
        "images/train/train0.jpg": "is damaged (Image is incomplete or truncated",
        "images/train/train1.jpg": "is grayscale, not 8-bit RGB",
        "images/train/train2.png": "is RGBA (with an alpha channel), not 8-bit RGB",
        "images/train/train3.png": "is 16-bit, not 8-bit RGB",
        "images/train/train4.jpg": "is stored rotated (EXIF orientation)",
        "masks/train/train5.png": "is RGB, but index masks are needed",
        "masks/train/train6.png": "is 31x24, but its image train6.jpg is 32x24",
        "masks/train/train7.png": "holds label 3 (768 pixels); allowed are labels 0-2, 255",
        "masks/train/train8.png": "is missing",
        "images/train/train9.jpg": "is not an image",
    }


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("splits", [True, False], ids=["folders", "lists"])
@pytest.mark.parametrize("masks", ["index", "color"])
def test_layouts(tmp_path: Path, splits: bool, masks: str) -> None:
    write(tmp_path, splits=splits, masks=masks)
    before = snapshot(tmp_path)
    data = FolderDataModule(str(tmp_path), batch_size=3, crop_size=16)
    assert data.class_names == ["background", "leaf", "fruit"]
    assert data.num_classes == 3
    assert data.palette == [tuple(color) for color in COLORS.tolist()]
    prefix = "val/" if splits else ""
    assert data.dataset("val").ids == [f"{prefix}val{index}" for index in range(3)]
    for sample in data.dataset("val"):
        stored = np.asarray(Image.open(tmp_path / "masks" / f"{sample.id}.png"))
        expected = stored if masks == "index" else (stored[..., None, :] == COLORS).all(-1).argmax(-1)
        np.testing.assert_array_equal(sample.mask, expected)
    (batch,) = data.train_dataloader()
    assert batch["image"].shape == (3, 3, 16, 16)
    assert len(list(data.test_dataloader())) == 3
    assert snapshot(tmp_path) == before


def test_values_void_and_statistics(tmp_path: Path) -> None:
    more = "void: [9, 255]\nmean: [0.1, 0.2, 0.3]\nstd: [0.4, 0.5, 0.6]"
    write(tmp_path, more=more)
    text = (tmp_path / "classes.yaml").read_text().replace("{name: fruit", "{value: 7, name: fruit")
    (tmp_path / "classes.yaml").write_text(text)
    mask = np.array([[0, 1, 7, 9, 255]], dtype=np.uint8).repeat(24, 0)
    Image.fromarray(mask).save(tmp_path / "masks/test/test0.png")
    Image.fromarray(np.zeros((24, 5, 3), dtype=np.uint8)).save(tmp_path / "images/test/test0.jpg")
    data = FolderDataModule(str(tmp_path))
    assert data.dataset("test")[0].mask[0].tolist() == [0, 1, 2, 255, 255]
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_mask_suffix(tmp_path: Path) -> None:
    write(tmp_path, suffix="_labels")
    assert FolderDataModule(str(tmp_path), mask_suffix="_labels").dataset("val")[1].mask is not None
    with pytest.raises(DataError, match=r"3 of 6 files are missing(.|\n)*masks.val.val0\.png"):
        FolderDataModule(str(tmp_path)).setup("validate")


@pytest.mark.parametrize("splits", [True, False])
def test_folders_may_be_links(tmp_path: Path, splits: bool) -> None:
    """Also below the image and mask folders, and with masks of another extension than the usual PNG."""
    root, elsewhere = tmp_path / "leaves", tmp_path / "elsewhere"
    write(root)
    for kind in ("images", "masks"):
        (elsewhere / kind).mkdir(parents=True)
        (root / kind / "train").rename(elsewhere / kind / "train")
        (root / kind / "train").symlink_to(elsewhere / kind / "train")
    for mask in (elsewhere / "masks" / "train").iterdir():
        Image.open(mask).save(mask.with_suffix(".bmp"))
        mask.unlink()
    if not splits:
        (root / "train.txt").write_text("train/train2\ntrain/train0.jpg\n")
    dataset = FolderDataModule(str(root)).dataset("train")
    assert dataset.ids == [f"train/train{index}" for index in ((0, 1, 2) if splits else (2, 0))]
    for pair in dataset.pairs:
        expected = np.asarray(Image.open(elsewhere / "masks" / f"{pair.id}.bmp"))
        np.testing.assert_array_equal(dataset[dataset.ids.index(pair.id)].mask, expected)


def test_all_bad_files_are_listed_at_once(tmp_path: Path) -> None:
    write(tmp_path, count=12)
    expected = spoil_everything(tmp_path)
    (tmp_path / "masks/train/train8.png").write_bytes(b"")
    expected["masks/train/train8.png"] = "is not an image"
    before = snapshot(tmp_path)
    with pytest.raises(DataError) as caught:
        list(FolderDataModule(str(tmp_path), batch_size=4, num_workers=0).train_dataloader())
    message = str(caught.value)
    assert "10 of 12 samples cannot be used" in message
    for file, fault in expected.items():
        assert f"{tmp_path / file}: {fault}" in message
    assert "--data.on_error skip" in message
    assert "--data.convert_images true" in message
    assert snapshot(tmp_path) == before


@pytest.mark.slow  # torch takes ten seconds to give up workers of a failed loader
def test_worker_processes_report_the_same(tmp_path: Path) -> None:
    write(tmp_path, count=4)
    (tmp_path / "masks/train/train2.png").write_text("not an image")
    with pytest.raises(DataError, match=r"1 of 4 samples cannot be used:\n.*train2\.png: is not an image"):
        list(FolderDataModule(str(tmp_path), batch_size=2, num_workers=2).train_dataloader())


def test_skipping_trains_on_the_good_files_and_lists_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    run.mkdir()
    monkeypatch.chdir(run)
    write(root, count=12)
    expected = spoil_everything(root)
    before = snapshot(root)
    data = FolderDataModule(str(root), batch_size=2, on_error="skip", num_workers=0)
    with pytest.warns(UserWarning, match="training without 10 of 12 samples; skipped_files.txt lists them"):
        (batch,) = data.train_dataloader()
    assert sorted(batch["id"]) == ["train/train10", "train/train11"]
    lines = (run / "skipped_files.txt").read_text().splitlines()
    assert len(lines) == 10
    for line, (file, fault) in zip(lines, expected.items(), strict=True):
        assert line.startswith(f"{root / file}: {fault}")
    assert snapshot(root) == before
    # what is trained on is what a folder without these files has
    clean = shutil.copytree(root, tmp_path / "clean", ignore=shutil.ignore_patterns("train?.*"))
    assert data.fingerprint("train") == FolderDataModule(str(clean), batch_size=2).fingerprint("train")
    # evaluation never skips
    (root / "masks/val/val0.png").unlink()
    with pytest.raises(DataError, match="1 of 24 files are missing"):
        data.val_dataloader()


def test_converting_images(tmp_path: Path) -> None:
    write(tmp_path, count=12)
    spoil_everything(tmp_path)
    # turned upright, the rotated picture stands: its mask must, too
    Image.fromarray(np.zeros((32, 24), dtype=np.uint8)).save(tmp_path / "masks/train/train4.png")
    samples = FolderDataModule(str(tmp_path), convert_images=True).load_split("train")
    images = {
        name: samples[samples.ids.index(f"train/{name}")].image for name in ("train1", "train2", "train3", "train4")
    }
    stored = {name: np.asarray(Image.open(next((tmp_path / "images/train").glob(f"{name}.*")))) for name in images}
    np.testing.assert_array_equal(images["train1"], stored["train1"][..., None].repeat(3, -1))
    np.testing.assert_array_equal(images["train2"], stored["train2"][..., :3])
    assert (images["train3"] == round(40000 / 65535 * 255)).all()
    # EXIF orientation 6: the stored first row is the right-hand column
    np.testing.assert_array_equal(images["train4"], np.rot90(stored["train4"], -1))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("classes: []", "has no list of classes"),
        ("- a", "contains no mapping"),
        ("clases: []", "unknown key: 'clases'; expected one of classes, masks, void, mean, std"),
        ("masks: rgb\nclasses: [{name: a, color: [0, 0, 0]}]", "masks must be index or color, got 'rgb'"),
        ("classes: [{color: [0, 0, 0]}]", "class 0 has no name"),
        ("classes: [{name: a}]", "a needs a color of three whole numbers from 0 to 255, got None"),
        ("classes: [{name: a, color: [0, 0, 0]}, {name: a, color: [1, 0, 0]}]", "two classes have the same name"),
        ("classes: [{name: a, color: [0, 0, 0], value: 300}]", "whole numbers from 0 to 255, got 300"),
        ("void: [0]\nclasses: [{name: a, color: [0, 0, 0]}]", "values [0] are both a class and void"),
        (
            "masks: color\nvoid: [[0, 0, 0]]\nclasses: [{name: a, color: [0, 0, 0]}]",
            "colors [(0, 0, 0)] are both a class and void",
        ),
        ("mean: [120, 110, 100]\nclasses: [{name: a, color: [0, 0, 0]}]", "mean must be three numbers between 0 and 1"),
        ("classes: [", "while parsing"),
    ],
)
def test_class_files_that_are_not_understood(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "classes.yaml").write_text(text)
    with pytest.raises(DataError) as caught:
        FolderDataModule(str(tmp_path))
    assert fault in str(caught.value)
    assert "{name: leaf, color: [0, 160, 0]}" in str(caught.value)


def test_the_example_in_the_error_is_understood(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text(EXAMPLE)
    assert FolderDataModule(str(tmp_path)).class_names == ["background", "leaf"]


def test_unknown_colors_are_named(tmp_path: Path) -> None:
    write(tmp_path, masks="color")
    mask = np.zeros((24, 32, 3), dtype=np.uint8)
    mask[0, 0] = (1, 2, 3)
    Image.fromarray(mask).save(tmp_path / "masks/val/val1.png")
    with pytest.raises(DataError, match=r"val1\.png: holds color \(1, 2, 3\) \(1 pixels?\); allowed are colors"):
        list(FolderDataModule(str(tmp_path)).val_dataloader())


def test_missing_pieces(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"classes\.yaml cannot be used:\n  is missing"):
        FolderDataModule(str(tmp_path))
    write(tmp_path, splits=False)
    (tmp_path / "val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"no images for split 'val':\n.*val\.txt is empty"):
        FolderDataModule(str(tmp_path)).setup("validate")
    (tmp_path / "val.txt").unlink()
    with pytest.raises(DataError, match=r"no images for split 'val':\n  there is no (.|\n)*--data\.val_split"):
        FolderDataModule(str(tmp_path)).setup("validate")
    (tmp_path / "test.txt").write_text("test0\ngone\nlost.jpg\n")
    with pytest.raises(DataError, match=r"4 of 6 files are missing(.|\n)*images.gone(.|\n)*images.lost\.jpg"):
        FolderDataModule(str(tmp_path)).setup("test")
    assert FolderDataModule(str(tmp_path), val_split=None).val_dataloader() == []


def test_an_image_listed_twice_is_refused(tmp_path: Path) -> None:
    """With and without its ending: it would count twice in mIoU."""
    write(tmp_path, splits=False)
    (tmp_path / "test.txt").write_text("test0\ntest1\ntest0.jpg\n")
    with pytest.raises(DataError, match=r"test\.txt names 1 of its images more than once:\n.*test0\.jpg\n"):
        FolderDataModule(str(tmp_path)).load_split("test")


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    """macOS puts `._a.jpg` beside `a.jpg` on disks of other systems."""
    write(tmp_path)
    for kind, ending in (("images", "jpg"), ("masks", "png")):
        (tmp_path / kind / "train" / f"._train0.{ending}").write_bytes(b"\0\5\x16\7Mac OS X")
    assert FolderDataModule(str(tmp_path)).load_split("train").ids == [f"train/train{index}" for index in range(3)]
    assert image_dataset(tmp_path / "images" / "train").ids == [f"train{index}" for index in range(3)]


def test_255_is_a_class_where_one_has_it_as_its_value(tmp_path: Path) -> None:
    leaf = "{name: leaf, color: [0, 160, 0], value: 255}"
    write(tmp_path, count=1)
    (tmp_path / "classes.yaml").write_text(f"classes: [{{name: ground, color: [0, 0, 0]}}, {leaf}]")
    Image.fromarray(np.full((24, 32), 255, dtype=np.uint8)).save(tmp_path / "masks/test/test0.png")
    assert (FolderDataModule(str(tmp_path)).dataset("test")[0].mask == 1).all()


def test_masks_must_be_lossless(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "masks/test/test0.png").unlink()
    Image.fromarray(np.zeros((24, 32), dtype=np.uint8)).save(tmp_path / "masks/test/test0.jpg")
    with pytest.raises(DataError, match=r"test0\.jpg: is a JPEG, which can change labels"):
        list(FolderDataModule(str(tmp_path)).test_dataloader())


def test_names_that_differ_by_their_ending_alone(tmp_path: Path) -> None:
    write(tmp_path)
    Image.fromarray(np.zeros((24, 32, 3), dtype=np.uint8)).save(tmp_path / "images/train/train1.png")
    with pytest.raises(DataError, match=r"has 1 images(.|\n)*train1\.jpg and train1\.png"):
        FolderDataModule(str(tmp_path)).setup("fit")
