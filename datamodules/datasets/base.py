"""The interface of a split: a data set of raw images with their labels."""

import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from beyondpixel.datamodules.datasets.errors import BadFileError, data_error

Pixels = NDArray[np.uint8]
T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One image before any augmentation or normalization.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        mask: uint8 (H, W), class indices and 255 where the pixel has no label; None where there is no target.
        id: The name in predictions and errors.
    """

    image: Pixels
    mask: Pixels | None
    id: str


class SegmentationDataset(Dataset[Sample]):
    """A split: `len(dataset)`, `dataset[index]`, `dataset.ids`; `remedy` says how to repair bad files."""

    ids: list[str]
    remedy: str = ""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short hash of the content."""

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def require_files(self) -> None:
        """Raise `DataError` if files are missing, without reading any."""

    def read(self, index: int) -> Sample:
        """Return `dataset[index]`, but raise a `BadFileError` for a bad file, about this file alone."""
        return self[index]

    def select(self, indices: Sequence[int]) -> "SegmentationDataset":
        """Return some of the samples, in this order; required for `on_error="skip"` if there are bad files."""
        raise NotImplementedError(f'on_error="skip" needs {type(self).__name__} to have a method `select`')


class MappedDataset(SegmentationDataset):
    """A data set with a fixed, deterministic transform of each sample, such as a resize.

    Args:
        dataset: The data set to transform.
        change: Maps a sample to a sample; None changes nothing.
    """

    def __init__(self, dataset: SegmentationDataset, change: Callable[[Sample], Sample] | None = None) -> None:
        self.dataset = dataset
        self.change = change
        self.ids = dataset.ids

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[index] if self.change is None else self.change(self.dataset[index])

    def fingerprint(self) -> str:
        """Return the fingerprint of the data set before the change."""
        return self.dataset.fingerprint()


class CachedDataset(MappedDataset):
    """A data set kept decoded in memory.

    Worker processes that are forked after `fill` share their parent's memory, so there is one copy, not one per worker.
    Without `fill` each process keeps the samples that it has read itself.

    Args:
        dataset: The data set to keep.
    """

    def __init__(self, dataset: SegmentationDataset) -> None:
        super().__init__(dataset)
        self._kept: list[Sample | None] = [None] * len(dataset)

    def __getitem__(self, index: int) -> Sample:
        kept = self._kept[index]
        if kept is None:
            kept = self._kept[index] = self.dataset[index]
        return kept

    def fill(self) -> None:
        """Read all samples that are not in memory yet.

        Raises:
            MemoryError: The samples need more than this machine's memory.
        """
        first = self[0]
        size = len(self) * (first.image.nbytes + (0 if first.mask is None else first.mask.nbytes))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else size
        if size > memory:
            raise MemoryError(
                f"{len(self)} decoded images take about {size / 1e9:.0f} GB, but this machine has "
                f"{memory / 1e9:.0f} GB of memory: "
                'omit cache="ram", or use a smaller image_size'
            )
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(self.__getitem__, range(len(self))):
                pass


def read_all(dataset: SegmentationDataset, look: Callable[[Sample], T]) -> Iterator[T | BadFileError]:
    """Read every sample; yield the result of `look`, or the error of a bad file, in order."""

    def seen(index: int) -> T | BadFileError:
        try:
            return look(dataset.read(index))
        except BadFileError as error:
            return error

    with ThreadPoolExecutor() as pool:
        yield from pool.map(seen, range(len(dataset)))


def find_faults(dataset: SegmentationDataset) -> dict[int, str]:
    """Read every sample and return the faults by index."""
    errors = read_all(dataset, lambda sample: None)
    return {index: str(error) for index, error in enumerate(errors) if error is not None}


def without_faults(dataset: SegmentationDataset, *, name: str, listing: Path | None) -> SegmentationDataset:
    """Read all samples once, and keep those that can be read; warn of the others and list them in a file, if given.

    Raises:
        DataError: No sample is left.
    """
    faults = find_faults(dataset)
    if not faults:
        return dataset
    if listing is not None:
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{fault}\n" for fault in faults.values()), encoding="utf-8")
        warnings.warn(
            f"{name}: training without {len(faults)} of {len(dataset)} samples; {listing} lists them", stacklevel=2
        )
    if len(faults) == len(dataset):
        raise data_error(
            f"{name}: no training sample can be used",
            list(faults.values()),
            expected="at least some good files",
            remedy=dataset.remedy,
        )
    return dataset.select([index for index in range(len(dataset)) if index not in faults])
