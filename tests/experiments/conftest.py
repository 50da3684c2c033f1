"""Data sets in their public layouts, with all the files that they have and hardly anything in them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beyondpixel.datamodules.camvid import COUNTS
from beyondpixel.datamodules.voc import voc_palette

SIZE = (48, 64)
DIFFERENT = 4  # scenes; the other files are copies of them


@pytest.fixture(scope="session")
def tiny_camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SegNet tutorial's CamVid folder: every count as it is, every image 64x48."""
    root = tmp_path_factory.mktemp("data") / "CamVid"
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        pairs = []
        for index in range(COUNTS[split]):
            name = f"0001TP_{index:06d}.png"
            image, mask = root / split / name, root / f"{split}annot" / name
            for file in (image, mask):
                file.parent.mkdir(parents=True, exist_ok=True)
                if index >= DIFFERENT:
                    shutil.copyfile(file.with_name(f"0001TP_{index % DIFFERENT:06d}.png"), file)
            if index < DIFFERENT:
                labels = _scene(rng, num_classes=12)
                Image.fromarray(labels).save(mask)
                Image.fromarray(_photo(rng, labels)).save(image)
            pairs.append(f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n")
        (root / f"{split}.txt").write_text("".join(pairs))
    return root


@pytest.fixture(scope="session")
def tiny_voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The VOC2012 folder with SBD's masks in `SegmentationClassAug`: 16 images to train on and 4 to test, 64x48."""
    root = tmp_path_factory.mktemp("data") / "VOC2012"
    rng = np.random.default_rng(0)
    lists = {"train": range(8), "trainaug": range(16), "val": range(16, 20), "trainval": [*range(8), *range(16, 20)]}
    names = [f"2007_{index:06d}" for index in range(20)]
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name in names:
        labels = _scene(rng, num_classes=21)
        Image.fromarray(_photo(rng, labels)).save(root / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(_with_boundaries(labels)).convert("P")
        mask.putpalette([value for color in voc_palette(256) for value in color])
        mask.save(root / "SegmentationClass" / f"{name}.png")
        Image.fromarray(labels).save(root / "SegmentationClassAug" / f"{name}.png")  # SBD's have no palette
    for split, indices in lists.items():
        text = "".join(f"{names[index]}\n" for index in indices)
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text)
    return root


def _scene(rng: np.random.Generator, num_classes: int) -> np.ndarray:
    """Blocks of 16 pixels, each of one class."""
    height, width = SIZE
    blocks = rng.integers(0, num_classes, (height // 16, width // 16), dtype=np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


def _photo(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    colors = np.array(voc_palette(32), dtype=np.int64)[labels]
    return np.clip(colors + rng.integers(-20, 21, colors.shape), 0, 255).astype(np.uint8)


def _with_boundaries(labels: np.ndarray) -> np.ndarray:
    """Void (255) where blocks meet, as in VOC's own masks."""
    marked = labels.copy()
    marked[15::16] = 255
    marked[:, 15::16] = 255
    return marked
