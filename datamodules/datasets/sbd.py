"""VOC's augmented training set (trainaug), made from SBD's annotations."""

from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from beyondpixel.datamodules.datasets.errors import data_error

TRAINAUG = 10582


def build_trainaug(sbd: Path, voc: Path, target: Path) -> None:
    """Write `SegmentationClassAug` and `ImageSets/Segmentation/trainaug.txt`.

    trainaug is every image that SBD or VOC's train split annotates, without VOC's val images. VOC's own masks, which
    have void boundaries, are preferred to SBD's.

    Args:
        sbd: SBD's `dataset` folder, with `train.txt`, `val.txt` and `cls/*.mat`.
        voc: The VOC2012 folder.
        target: Destination folder of the two.

    Raises:
        DataError: The union does not have the published 10,582 images, or images of it are missing from VOC.
    """
    lists = voc / "ImageSets" / "Segmentation"
    own, held_out = _names(lists / "train.txt"), _names(lists / "val.txt")
    names = sorted((_names(sbd / "train.txt") | _names(sbd / "val.txt") | own) - held_out)
    if len(names) != TRAINAUG:
        raise data_error(
            f"SBD in {sbd} and VOC in {voc} make a trainaug split of {len(names)} images",
            expected=f"{TRAINAUG:,} images, from the complete lists of both",
            remedy=f"beyondpixel data get voc --root {voc}, then beyondpixel data get sbd --root {voc}",
        )
    missing = [f"{name}.jpg" for name in names if not (voc / "JPEGImages" / f"{name}.jpg").is_file()]
    if missing:
        raise data_error(
            f"{len(missing)} images of trainaug are missing in {voc / 'JPEGImages'}",
            missing,
            expected="the complete VOC 2012 images",
            remedy=f"beyondpixel data get voc --root {voc}",
        )
    masks = target / "SegmentationClassAug"
    masks.mkdir(parents=True, exist_ok=True)
    for name in track(names, "Building trainaug"):
        if name in own:
            mask = np.asarray(Image.open(voc / "SegmentationClass" / f"{name}.png"))
        else:
            mask = _read_mat(sbd / "cls" / f"{name}.mat")
        Image.fromarray(mask.astype(np.uint8)).save(masks / f"{name}.png")
    listing = target / "ImageSets" / "Segmentation" / "trainaug.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _names(listing: Path) -> set[str]:
    return set(listing.read_text(encoding="utf-8").split())


def _read_mat(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    # slow to import, and only needed here
    from scipy.io import loadmat

    return np.asarray(loadmat(path)["GTcls"]["Segmentation"][0, 0], dtype=np.uint8)


def find_voc(root: Path) -> Path:
    """Return VOC's folder, which contains `ImageSets`: `root`, or the folder below it as in the public archive."""
    below = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((folder for folder in below if (folder / "ImageSets").is_dir()), root)
