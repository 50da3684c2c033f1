"""A user's own images and masks."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from beyondpixel.datamodules.base import SegmentationDataModule
from beyondpixel.datamodules.datasets.class_file import read_class_file
from beyondpixel.datamodules.datasets.errors import DataError, data_error
from beyondpixel.datamodules.datasets.files import FileDataset, Pair
from beyondpixel.datamodules.datasets.images import images_among
from beyondpixel.datamodules.datasets.listing import read_list


class FolderDataModule(SegmentationDataModule):
    """Your own images and masks; see docs/tutorials/your_data.md, a ten-minute tutorial.

    `root` contains `classes.yaml`, and images and masks in one of two layouts::

        images/train/a.jpg  masks/train/a.png     a folder for each split, or
        images/a.jpg        masks/a.png           a list for each split: train.txt, val.txt, test.txt,
                                                  one image name per line, with or without extension

    `classes.yaml` defines the classes and whether masks contain indices (8-bit grayscale or palette) or colors::

        masks: index
        classes:
          - {name: background, color: [0, 0, 0]}
          - {name: leaf, color: [0, 160, 0]}
        void: [255]

    Nothing in `root` is ever modified.

    Args:
        root: The folder.
        classes: The class file, relative to `root`.
        images: The image folder, relative to `root`.
        masks: The mask folder, relative to `root`.
        mask_suffix: Suffix of the mask's name after the image's name, before the extension, such as "_mask".
        train_split: The split to train on.
        val_split: The split to validate on; None holds out no images.
        test_split: The split to test on.
        crop_size: Side, or height and width, of the training crops.
        scales: Lowest and highest factor of the random rescaling of training images.
        convert_images: Accept grayscale, RGBA, CMYK and 16-bit images, and photographs that are stored rotated; all
            are converted to upright 8-bit RGB when they are read. Masks are never rotated: they must match the upright
            image.
        **common: As for `SegmentationDataModule`.
    """

    dataset_name: ClassVar[str] = "Folder"
    fixed_size: ClassVar[bool] = False

    def __init__(
        self,
        root: str,
        *,
        classes: str = "classes.yaml",
        images: str = "images",
        masks: str = "masks",
        mask_suffix: str = "",
        train_split: str = "train",
        val_split: str | None = "val",
        test_split: str = "test",
        crop_size: int | tuple[int, int] | None = 256,
        scales: tuple[float, float] = (0.5, 2.0),
        convert_images: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(crop_size=crop_size, scales=scales, **common)
        self.root = root
        self.images = images
        self.masks = masks
        self.mask_suffix = mask_suffix
        self.train_split = train_split
        self.val_split = val_split
        self.test_split = test_split
        self.convert_images = convert_images
        self.splits = tuple(dict.fromkeys(split for split in (train_split, val_split, test_split) if split))
        self.classes = read_class_file(Path(root) / classes)
        self.class_names = self.classes.class_names
        self.palette = self.classes.palette
        if self.normalization == "dataset":
            self.mean, self.std = self.classes.mean, self.classes.std

    def load_split(self, split: str) -> FileDataset:
        """Find the split's images, by its list or its folder, and their masks."""
        root = Path(self.root)
        listing = root / f"{split}.txt"
        images = self._listed(listing) if listing.is_file() else self._in_folder(split)
        masks = _by_stem(root / self.masks, (image.parent.relative_to(root / self.images) for image in images))
        pairs = []
        for image in images:
            name = image.relative_to(root / self.images).with_suffix("")
            mask_name = name.with_name(name.name + self.mask_suffix)
            # a missing mask is reported with the expected extension
            mask = masks.get(mask_name, root / self.masks / mask_name.with_name(f"{mask_name.name}.png"))
            pairs.append(Pair(name.as_posix(), image, mask))
        return FileDataset(
            pairs,
            self.classes.values,
            name=f"{split} in {root}",
            remedy=self._remedy,
            convert_images=self.convert_images,
        )

    @property
    def _remedy(self) -> str:
        hints = ["repair or remove these files, or train without them: --data.on_error skip"]
        if not self.convert_images:
            hints.append("images of other kinds are accepted with --data.convert_images true")
        if self.classes.values.kind == "index":
            hints.append("masks that show colors need the line masks: color in the class file")
        return "; ".join(hints)

    def _listed(self, listing: Path) -> list[Path]:
        folder = Path(self.root) / self.images
        names = read_list(listing, remedy=f"write one image name per line, relative to {folder}")
        if not names:
            raise self._no_split(listing.stem, f"{listing} is empty")
        by_stem = _by_stem(folder, (Path(name).parent for name in names))
        images = [
            folder / name if (folder / name).is_file() else by_stem.get(Path(name), folder / name) for name in names
        ]
        if twice := [str(image) for image, count in Counter(images).items() if count > 1]:
            raise data_error(
                f"{listing} names {len(twice)} of its images more than once",
                twice,
                expected="each image once, as a repeated one would count more than the others",
                remedy=f"remove the repeated lines from {listing}",
            )
        return images

    def _in_folder(self, split: str) -> list[Path]:
        folder = Path(self.root) / self.images / split
        images = sorted(_by_stem(folder, [Path()]).values())
        if not images:
            raise self._no_split(split, f"{folder} contains no images" if folder.is_dir() else f"there is no {folder}")
        return images

    def _no_split(self, split: str, why: str) -> DataError:
        root = Path(self.root)
        return data_error(
            f"There are no images for split {split!r}",
            [why],
            expected=f"image names in {root / split}.txt, or images in {root / self.images / split}",
            remedy="write the list, fill the folder, or name another split with --data.train_split, --data.val_split "
            "or --data.test_split",
        )


def _by_stem(folder: Path, parts: Iterable[Path]) -> dict[Path, Path]:
    """Map paths without extension, relative to `folder`, to the images in some of its subfolders, and below these.

    Each subfolder is searched on its own, because a search of `folder` would not enter subfolders that are links.
    """
    searched = {folder / part for part in parts}
    files = images_among({file for subfolder in searched if subfolder.is_dir() for file in subfolder.rglob("*")})
    by_stem = {path.relative_to(folder).with_suffix(""): path for path in files}
    if len(by_stem) < len(files):
        hidden = [path for path in files if by_stem[path.relative_to(folder).with_suffix("")] != path]
        raise data_error(
            f"{folder} has {len(hidden)} images whose names differ from others only by the extension",
            [f"{path} and {by_stem[path.relative_to(folder).with_suffix('')].name}" for path in hidden],
            expected="one image of each name, so that images and masks can be matched",
            remedy="rename or remove one of each pair",
        )
    return by_stem
