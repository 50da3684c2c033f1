"""Report on the content and the faults of a data set: `beyondpixel data check`."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from beyondpixel.datamodules.base import SegmentationDataModule
from beyondpixel.datamodules.datasets.base import Sample, read_all
from beyondpixel.datamodules.datasets.errors import BadFileError, DataError
from beyondpixel.datamodules.datasets.labels import IGNORE_INDEX

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ClassCount:
    """Pixels of a class, or of void; their share of all labeled pixels (void's: of all pixels); images with it."""

    name: str
    pixels: int
    share: float
    images: int


@dataclass(frozen=True)
class SplitReport:
    """The content of one split.

    Attributes:
        split: Its name.
        images: Readable images.
        sizes: How many images have each size (height, width), the most frequent first.
        classes: In label order, void last; empty where there is no target.
        mean: RGB mean of the images scaled to 0..1.
        std: RGB standard deviation likewise.
        faults: One entry for each sample that cannot be used.
        remedy: What to do about the faults.
        error: Why the whole split cannot be used; None if it can.
        warnings: Unusual content, such as fewer images than published, or images that are also in another split.
    """

    split: str
    images: int = 0
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    classes: list[ClassCount] = field(default_factory=list)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    faults: list[str] = field(default_factory=list)
    remedy: str = ""
    error: str | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all samples can be used."""
        return self.error is None and not self.faults

    @property
    def absent_classes(self) -> list[str]:
        """Classes without pixels in the split."""
        return [count.name for count in self.classes if count.name != "void" and not count.pixels]


def check(
    datamodule: SegmentationDataModule, splits: Sequence[str] | None = None, *, progress: bool = True
) -> list[SplitReport]:
    """Read every file of a data set, as stored (before `image_size`), and report on each split.

    All bad files and missing splits are listed in the reports; no error is raised for them and nothing is changed.

    Args:
        datamodule: Any data module.
        splits: Splits to check; None takes those that the data module trains, validates and tests on.
        progress: Show progress bars.

    >>> from beyondpixel.datamodules import ShapesDataModule
    >>> (report,) = check(ShapesDataModule(num_train=2), ["train"], progress=False)
    >>> report.ok, report.images, report.sizes
    (True, 2, {(96, 128): 2})
    """
    used = [datamodule.train_split, datamodule.val_split, datamodule.test_split]
    names = dict.fromkeys(split for split in used if split is not None) if splits is None else splits
    split_of: dict[bytes, str] = {}
    return [_check_split(datamodule, split, split_of, progress) for split in names]


def _check_split(
    datamodule: SegmentationDataModule, split: str, split_of: dict[bytes, str], progress: bool
) -> SplitReport:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            dataset = datamodule.load_split(split)
        except DataError as error:
            return SplitReport(split, error=str(error))
    # histograms of 256 bins, which determine mean and deviation exactly; pixels of each label, and images with it
    colors, labels = np.zeros((3, 256), dtype=np.int64), np.zeros((2, 256), dtype=np.int64)
    sizes, faults, seen = Counter[tuple[int, int]](), list[str](), list[tuple[bytes, str]]()
    description = f"Checking {datamodule.dataset_name} {split}"
    for entry in track(read_all(dataset, _statistics), description, total=len(dataset), disable=not progress):
        if isinstance(entry, BadFileError):
            faults.append(str(entry))
            continue
        id, digest, size, of_colors, of_labels = entry
        seen.append((digest, id))
        sizes[size] += 1
        colors += of_colors
        labels += np.stack([of_labels, of_labels > 0])
    values, pixels = np.arange(256) / 255, max(1, colors[0].sum())
    mean = colors @ values / pixels
    std = np.sqrt((colors @ values**2 / pixels - mean**2).clip(0))  # rounding errors of constant images
    report = SplitReport(
        split,
        sizes.total(),
        dict(sizes.most_common()),
        _count_classes(datamodule.class_names, labels) if labels.any() else [],
        tuple(mean.tolist()) if sizes else (),
        tuple(std.tolist()) if sizes else (),
        faults,
        dataset.remedy,
        warnings=[*(str(warning.message) for warning in caught), *_copies(seen, split_of)],
    )
    for digest, _ in seen:
        split_of.setdefault(digest, split)
    return report


def _copies(seen: Sequence[tuple[bytes, str]], split_of: dict[bytes, str]) -> list[str]:
    """Warnings of images that are also in a split checked before."""
    found = []
    for other in dict.fromkeys(split_of.values()):
        if shared := [id for digest, id in seen if split_of.get(digest) == other]:
            found.append(f"images that are also in {other}: {len(shared)}, such as {shared[0]}")
    return found


def _statistics(sample: Sample) -> tuple[str, bytes, tuple[int, int], Counts, Counts]:
    """Id, digest of the pixels (finds copies with another name), size, and histograms of colors and labels."""
    colors = np.stack([np.bincount(sample.image[..., channel].ravel(), minlength=256) for channel in range(3)])
    labels = np.bincount([] if sample.mask is None else sample.mask.ravel(), minlength=256)
    height, width = sample.image.shape[:2]
    digest = hashlib.sha256(np.ascontiguousarray(sample.image).data).digest()
    return sample.id, digest, (height, width), colors, labels


def _count_classes(names: list[str], labels: Counts) -> list[ClassCount]:
    pixels, images = labels.tolist()
    labeled, void = sum(pixels[: len(names)]), pixels[IGNORE_INDEX]
    counts = [ClassCount(name, pixels[i], pixels[i] / max(1, labeled), images[i]) for i, name in enumerate(names)]
    return [*counts, ClassCount("void", void, void / max(1, labeled + void), images[IGNORE_INDEX])]
