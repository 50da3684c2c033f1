"""Report on the content and the faults of a data set: `beyondpixel data check`."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from beyondpixel.datamodules.base import SegmentationDataModule
from beyondpixel.datamodules.datasets.base import Sample, read_all
from beyondpixel.datamodules.datasets.errors import BadFileError, DataError
from beyondpixel.datamodules.datasets.labels import IGNORE_INDEX


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


@dataclass(frozen=True)
class _SampleStatistics:
    """Contribution of one sample to the sums, and its image's digest."""

    id: str
    digest: bytes
    size: tuple[int, int]
    labels: NDArray[np.int64] | None
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]


def _check_split(
    datamodule: SegmentationDataModule, split: str, split_of: dict[bytes, str], progress: bool
) -> SplitReport:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            dataset = datamodule.load_split(split)
        except DataError as error:
            return SplitReport(split, error=str(error))
    description = f"Checking {datamodule.dataset_name} {split}"
    seen = list(track(read_all(dataset, _statistics), description, total=len(dataset), disable=not progress))
    faults = [str(entry) for entry in seen if isinstance(entry, BadFileError)]
    good = [entry for entry in seen if isinstance(entry, _SampleStatistics)]
    return SplitReport(
        split,
        **(_content(good, datamodule.class_names) if good else {}),
        faults=faults,
        remedy=dataset.remedy,
        warnings=[*(str(warning.message) for warning in caught), *_copies(good, split, split_of)],
    )


def _content(samples: Sequence[_SampleStatistics], class_names: list[str]) -> dict[str, Any]:
    """Those attributes of a `SplitReport` that describe its readable images."""
    sizes = Counter(sample.size for sample in samples)
    pixels = sum(height * width * count for (height, width), count in sizes.items())
    mean = np.sum([sample.sums for sample in samples], axis=0) / pixels
    variance = np.sum([sample.squares for sample in samples], axis=0) / pixels - mean**2
    return {
        "images": len(samples),
        "sizes": dict(sizes.most_common()),
        "classes": _count_classes(class_names, [one.labels for one in samples if one.labels is not None]),
        "mean": tuple(mean.tolist()),
        "std": tuple(np.sqrt(variance).tolist()),
    }


def _copies(samples: Sequence[_SampleStatistics], split: str, split_of: dict[bytes, str]) -> list[str]:
    """Warnings of images that are also in a split checked before; then remember the split of these."""
    found = []
    for other in dict.fromkeys(split_of.values()):
        if shared := [sample.id for sample in samples if split_of.get(sample.digest) == other]:
            found.append(f"images that are also in {other}: {len(shared)}, such as {shared[0]}")
    for sample in samples:
        split_of.setdefault(sample.digest, split)
    return found


def _statistics(sample: Sample) -> _SampleStatistics:
    # a 256-bin histogram per channel determines mean and deviation exactly
    values = np.arange(256) / 255
    counts = np.stack([np.bincount(sample.image[..., channel].ravel(), minlength=256) for channel in range(3)])
    labels = None if sample.mask is None else np.bincount(sample.mask.ravel(), minlength=256)
    height, width = sample.image.shape[:2]
    digest = hashlib.sha256(np.ascontiguousarray(sample.image).data).digest()  # finds copies with another name
    return _SampleStatistics(sample.id, digest, (height, width), labels, counts @ values, counts @ values**2)


def _count_classes(names: list[str], histograms: list[NDArray[np.int64]]) -> list[ClassCount]:
    if not histograms:
        return []
    pixels = np.sum(histograms, axis=0)
    images = np.sum([histogram > 0 for histogram in histograms], axis=0)
    labeled = int(pixels[: len(names)].sum())
    counts = [
        ClassCount(name, int(pixels[index]), int(pixels[index]) / max(1, labeled), int(images[index]))
        for index, name in enumerate(names)
    ]
    void = int(pixels[IGNORE_INDEX])
    return [*counts, ClassCount("void", void, void / max(1, labeled + void), int(images[IGNORE_INDEX]))]
