"""CamVid as the RMI paper uses it: the 480x360 version of the SegNet tutorial."""

from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from beyondpixel.datamodules.base import SegmentationDataModule
from beyondpixel.datamodules.datasets.errors import data_error
from beyondpixel.datamodules.datasets.files import FileDataset, Pair
from beyondpixel.datamodules.datasets.labels import IGNORE_INDEX, LabelTable
from beyondpixel.datamodules.datasets.listing import read_list
from beyondpixel.datamodules.options import check_choice
from beyondpixel.datamodules.resampling import Resampling

# order of the labels in the masks; names as in Table 4 of the RMI paper; colors of the SegNet tutorial
_CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "signsymbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
    "unlabelled": (0, 0, 0),
}
_UNLABELED = 11
COUNTS = {"train": 367, "val": 101, "test": 233, "trainval": 468}


class CamVidDataModule(SegmentationDataModule):
    """CamVid street scenes, 480x360 (SegNet tutorial): 367 train, 101 val, 233 test images.

    `root` is the tutorial's CamVid folder, unchanged: `train.txt`, `val.txt` and `test.txt` list the images in `train`,
    `val`, `test` and their masks in `trainannot`, `valannot`, `testannot`; only folder and file names in the lists
    are used, not the paths before them.

    The defaults are the RMI paper's: training on train and val together (468 images), scales 0.75 to 1.25, crop 479,
    evaluation on test at full size.

    Args:
        root: The CamVid folder.
        variant: "11" ignores unlabeled pixels, as most papers do; "12" makes them a class that is trained and
            evaluated, as the RMI authors' code does.
        train_split: "trainval" trains on everything but test, so that no images are held out and `val_dataloader()` is
            an empty list; "train" validates on val.
        crop_size: Side, or height and width, of the training crops; None takes whole images.
        scales: Lowest and highest factor of the random rescaling of training images.
        resampling: How images are rescaled; the RMI authors use Pillow's bicubic.
        eval_batch_size: Images per evaluation step of each process.
        **common: As for `SegmentationDataModule`.
    """

    dataset_name: ClassVar[str] = "CamVid"
    splits = ("train", "val", "test", "trainval")

    # as in the RMI authors' code, computed on the training images; 0-255 units divided by 255
    mean = (100 / 255, 103 / 255, 106 / 255)
    std = (75.61 / 255, 77.81 / 255, 76.70 / 255)

    def __init__(
        self,
        root: str = "data/CamVid",
        *,
        variant: Literal["11", "12", 11, 12] = "11",
        train_split: Literal["train", "trainval"] = "trainval",
        crop_size: int | tuple[int, int] | None = 479,
        scales: tuple[float, float] = (0.75, 1.25),
        resampling: Resampling = "bicubic_antialias",
        eval_batch_size: int = 4,
        **common: Any,
    ) -> None:
        super().__init__(
            crop_size=crop_size, scales=scales, resampling=resampling, eval_batch_size=eval_batch_size, **common
        )
        variant = "11" if variant == 11 else "12" if variant == 12 else variant  # YAML parses them as numbers
        if variant not in ("11", "12"):
            raise ValueError(f'variant must be "11" (unlabeled ignored) or "12" (unlabeled a class), got {variant!r}')
        check_choice("train_split", train_split, ("train", "trainval"))
        self.root = root
        self.variant = variant
        self.train_split = train_split
        self.val_split = "val" if train_split == "train" else None
        self.class_names = list(_CLASSES)[: int(variant)]
        self.palette = list(_CLASSES.values())[: int(variant)]
        self.classes_excluded_from_mean = ("unlabelled",) if variant == "12" else ()
        unlabeled = IGNORE_INDEX if variant == "11" else _UNLABELED
        self._labels = LabelTable({**{index: index for index in range(_UNLABELED)}, _UNLABELED: unlabeled})

    def load_split(self, split: str) -> FileDataset:
        """Read the split's list."""
        parts = ("train", "val") if split == "trainval" else (split,)
        pairs = [pair for part in parts for pair in self._pairs(part)]
        samples = FileDataset(pairs, self._labels, name=f"CamVid {split} in {self.root}", remedy=self._remedy)
        if len(samples) != COUNTS[split]:
            raise data_error(
                f"CamVid {split} in {self.root} has {len(samples)} images",
                expected=f"{COUNTS[split]}",
                remedy=self._remedy,
            )
        return samples

    def _pairs(self, part: str) -> list[Pair]:
        root = Path(self.root)
        listing = root / f"{part}.txt"
        if not listing.is_file():
            raise data_error(
                f"CamVid is missing or incomplete in {root}" if root.is_dir() else f"There is no folder {root}",
                [f"{listing.name} is missing"],
                expected="the SegNet tutorial's CamVid folder, with train.txt, val.txt, test.txt and six image folders",
                remedy=self._remedy,
            )
        lines = [line.split() for line in read_list(listing, remedy=self._remedy, absolute=True)]
        invalid = [" ".join(paths) for paths in lines if len(paths) != 2]
        if invalid:
            raise data_error(
                f"{listing} has invalid lines",
                invalid,
                expected="an image and its mask on each line",
                remedy=self._remedy,
            )
        pairs = []
        for image, mask in (map(PurePosixPath, paths) for paths in lines):
            pairs.append(Pair(image.stem, root.joinpath(*image.parts[-2:]), root.joinpath(*mask.parts[-2:])))
        return pairs

    @property
    def _remedy(self) -> str:
        return f"beyondpixel data get camvid --root {self.root}"
