"""What a split is, whatever it comes from: a sequence of raw images with their labels."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beyondpixel.datamodules.datasets.errors import BadFileError

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One image before any augmentation or normalisation.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        mask: uint8 (H, W), class indices and 255 where the pixel has no label; None where there is no truth.
        id: The name that predictions and errors carry.
    """

    image: Pixels
    mask: Pixels | None
    id: str


class Samples(ABC):
    """A split: `len(samples)`, `samples[index]`, `samples.ids`; `remedy` says what mends bad files."""

    ids: list[str]
    remedy: str = ""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def require_files(self) -> None:  # noqa: B027  # generated samples have no files
        """Raise `DataError` if files are missing, without reading any."""

    def read(self, index: int) -> Sample:
        """As `samples[index]`, except that a bad file is a `BadFileError` about this file alone."""
        return self[index]


class MappedSamples(Samples):
    """Samples after a fixed, random-free change, such as a resize.

    Args:
        samples: What to change.
        change: From sample to sample.
    """

    def __init__(self, samples: Samples, change: Callable[[Sample], Sample]) -> None:
        self.samples = samples
        self.change = change
        self.ids = samples.ids

    def __getitem__(self, index: int) -> Sample:
        return self.change(self.samples[index])


class CachedSamples(Samples):
    """Samples kept decoded in memory.

    Worker processes that are forked after `fill` share the memory of their parent, so it is there once, not once a
    worker. Without `fill` each process keeps what it has read itself.

    Args:
        samples: What to keep.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.ids = samples.ids
        self._kept: list[Sample | None] = [None] * len(samples)

    def __getitem__(self, index: int) -> Sample:
        kept = self._kept[index]
        if kept is None:
            kept = self._kept[index] = self.samples[index]
        return kept

    def fill(self) -> None:
        """Read everything that is not there yet.

        Raises:
            MemoryError: It would be more than this machine's memory.
        """
        first = self[0]
        size = len(self) * (first.image.nbytes + (0 if first.mask is None else first.mask.nbytes))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else size
        if size > memory:
            raise MemoryError(
                f"{len(self)} decoded images take about {size / 1e9:.0f} GB, but this machine has "
                f"{memory / 1e9:.0f} GB of memory: "
                'leave out cache="ram", or work at a smaller image_size'
            )
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(self.__getitem__, range(len(self))):
                pass


class ChosenSamples(Samples):
    """Some of the samples, in the order of `indices`.

    Args:
        samples: What to choose from.
        indices: Which to take.
    """

    def __init__(self, samples: Samples, indices: Sequence[int]) -> None:
        self.samples = samples
        self.indices = indices
        self.ids = [samples.ids[index] for index in indices]

    def __getitem__(self, index: int) -> Sample:
        return self.samples[self.indices[index]]


def find_faults(samples: Samples) -> dict[int, str]:
    """Read every sample; what is wrong, by index."""

    def fault(index: int) -> str | None:
        try:
            samples.read(index)
        except BadFileError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        faults = pool.map(fault, range(len(samples)))
        return {index: fault for index, fault in enumerate(faults) if fault is not None}
