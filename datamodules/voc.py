"""PASCAL VOC 2012, with the augmented training set that the papers use."""

import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal

from beyondpixel.datamodules.base import SegmentationDataModule
from beyondpixel.datamodules.datasets.errors import SubsetWarning, data_error
from beyondpixel.datamodules.datasets.files import FileDataset, Pair
from beyondpixel.datamodules.datasets.labels import IGNORE_INDEX, LabelTable
from beyondpixel.datamodules.datasets.listing import read_list
from beyondpixel.datamodules.datasets.sbd import find_voc
from beyondpixel.datamodules.options import check_choice
from beyondpixel.datamodules.resampling import Resampling

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
COUNTS = {"train": 1464, "trainaug": 10582, "val": 1449, "trainval": 2913, "test": 1456}


class VOCDataModule(SegmentationDataModule):
    """PASCAL VOC 2012: 21 classes; boundaries and difficult objects are void (255).

    `root` is the folder with `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation`, or one that contains it as
    `VOC2012` or `VOCdevkit/VOC2012`. The trainaug split (10,582 images, masks from SBD) needs `SegmentationClassAug`
    and `trainaug.txt` as well; `beyondpixel data get sbd` builds both.

    The defaults are the RMI paper's: trainaug, scales 0.5 to 2.0 in steps of 0.25, crop 513, evaluation on val with
    each image at its own size. A list that is shorter than the full split gives a warning, since scores on a subset
    cannot be compared.

    Args:
        root: The VOC2012 folder.
        train_split: "trainaug", "train" (1,464 images), or "trainval" (2,913), which leaves no images held out, so that
            `val_dataloader()` is an empty list.
        test_split: "val", or "test" (1,456 images without public target, so for `predict` alone).
        crop_size: Side, or height and width, of the training crops.
        scales: Lowest and highest factor of the random rescaling of training images.
        scale_step: Step between the factors; None takes any factor in the range.
        resampling: How images are rescaled; the RMI authors use Pillow's bicubic.
        **common: As for `SegmentationDataModule`.
    """

    dataset_name: ClassVar[str] = "VOC 2012"
    splits = ("train", "trainaug", "val", "trainval", "test")
    fixed_size: ClassVar[bool] = False

    # of the training images, from the RMI authors' code, in 0-255 units
    mean = (116 / 255, 113 / 255, 104 / 255)
    std = (69.58 / 255, 68.68 / 255, 72.67 / 255)

    def __init__(
        self,
        root: str = "data/VOC2012",
        *,
        train_split: Literal["trainaug", "train", "trainval"] = "trainaug",
        test_split: Literal["val", "test"] = "val",
        crop_size: int | tuple[int, int] | None = 513,
        scales: tuple[float, float] = (0.5, 2.0),
        scale_step: float | None = 0.25,
        resampling: Resampling = "bicubic_antialias",
        **common: Any,
    ) -> None:
        super().__init__(crop_size=crop_size, scales=scales, scale_step=scale_step, resampling=resampling, **common)
        check_choice("train_split", train_split, ("trainaug", "train", "trainval"))
        check_choice("test_split", test_split, ("val", "test"))
        self.root = root
        self.train_split = train_split
        self.val_split = None if train_split == "trainval" else "val"
        self.test_split = test_split
        self.class_names = list(CLASSES)
        self.palette = voc_palette(len(CLASSES))

    def load_split(self, split: str) -> FileDataset:
        """Read the split's list."""
        root = Path(self.root)
        folder = find_voc(root)
        listing = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        masks = {"trainaug": "SegmentationClassAug", "test": None}.get(split, "SegmentationClass")
        remedy = self._remedy(split)
        if not listing.is_file():
            raise data_error(
                f"VOC 2012 {split} is not complete in {folder}" if root.is_dir() else f"There is no folder {root}",
                [f"{listing.relative_to(folder)} is missing"],
                expected="the public VOC2012 layout: JPEGImages, SegmentationClass, ImageSets/Segmentation",
                remedy=remedy if root.is_dir() else self._remedy("train"),
            )
        # some published lists have paths of image and mask instead of ids
        ids = [Path(line.split()[0]).stem for line in read_list(listing, remedy=remedy, absolute=True)]
        _check_count(split, ids, listing, remedy)
        pairs = [
            Pair(id, folder / "JPEGImages" / f"{id}.jpg", folder / masks / f"{id}.png" if masks else None) for id in ids
        ]
        labels = LabelTable({**{index: index for index in range(len(CLASSES))}, IGNORE_INDEX: IGNORE_INDEX})
        return FileDataset(pairs, labels, name=f"VOC 2012 {split} in {folder}", remedy=remedy)

    def _remedy(self, split: str) -> str:
        if split == "test":
            return "the test images are available only from the VOC evaluation server, after registration"
        return f"beyondpixel data get {'sbd' if split == 'trainaug' else 'voc'} --root {self.root}"


def voc_palette(num_classes: int) -> list[tuple[int, int, int]]:
    """VOC's colors: the bits of the class index, three at a time, go to the highest bits of red, green and blue.

    >>> voc_palette(4)
    [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    """

    def channel(index: int, offset: int) -> int:
        return sum((index >> (3 * bit + offset) & 1) << (7 - bit) for bit in range(3))

    return [(channel(index, 0), channel(index, 1), channel(index, 2)) for index in range(num_classes)]


def _check_count(split: str, ids: list[str], listing: Path, remedy: str) -> None:
    full = COUNTS[split]
    if len(ids) > full or len(set(ids)) < len(ids):
        twice = sorted({id for id in ids if ids.count(id) > 1}) if len(set(ids)) < len(ids) else []
        raise data_error(
            f"{listing} names {len(ids)} images" + (", some of them twice" if twice else ""),
            twice,
            expected=f"the {full} different images of VOC 2012 {split}",
            remedy=remedy,
        )
    if len(ids) < full:
        warnings.warn(
            f"{listing} names {len(ids)} of the {full} images of VOC 2012 {split}: "
            "this is a subset, and its scores cannot be compared with published ones",
            SubsetWarning,
            stacklevel=2,
        )
