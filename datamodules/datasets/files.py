"""Pairs of image and mask files."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from beyondpixel.datamodules.datasets.base import Sample, SegmentationDataset, find_faults
from beyondpixel.datamodules.datasets.errors import BadFileError, data_error
from beyondpixel.datamodules.datasets.labels import LabelTable
from beyondpixel.datamodules.datasets.reading import read_image, read_mask

FINGERPRINT_BYTES = 4096


@dataclass(frozen=True)
class Pair:
    """One sample's files; `mask` is None where there is no target."""

    id: str
    image: Path
    mask: Path | None


class FileDataset(SegmentationDataset):
    """A split stored in files.

    Args:
        pairs: The files.
        labels: Mapping of the mask files' values to class indices.
        name: The data set's name and split, for errors.
        remedy: What to do about missing or bad files.
        convert_images: Accept images of any kind, see `read_image`.

    Raises:
        DataError: There are no pairs.
    """

    def __init__(
        self, pairs: Sequence[Pair], labels: LabelTable, *, name: str, remedy: str, convert_images: bool = False
    ) -> None:
        self.pairs = list(pairs)
        self.ids = [pair.id for pair in self.pairs]
        self.labels = labels
        self.name = name
        self.remedy = remedy
        self.convert_images = convert_images
        if not self.pairs:
            raise data_error(f"{name} has no images", expected="at least one image", remedy=remedy)

    def __getitem__(self, index: int) -> Sample:
        try:
            return self.read(index)
        except BadFileError as error:
            # the run has failed, so find all other faults, too, so that they can be fixed at once
            faults = list(find_faults(self).values())
            raise data_error(
                f"{self.name}: {len(faults)} of {len(self)} samples cannot be used",
                faults,
                expected=f"8-bit RGB images, and {self.labels.kind} masks of the same size with {self.labels.allowed}",
                remedy=self.remedy,
            ) from error

    def require_files(self) -> None:
        """Check that every file exists.

        Raises:
            DataError: Lists all missing files.
        """
        files = [file for pair in self.pairs for file in (pair.image, pair.mask) if file is not None]
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise data_error(
                f"{self.name}: {len(missing)} of {len(files)} files are missing",
                missing,
                expected="every image that the split names, and its mask",
                remedy=self.remedy,
            )

    def fingerprint(self) -> str:
        """Return a short hash of ids, masks (all bytes) and images (size, first and last 4 KiB)."""
        digest = hashlib.sha256()
        with ThreadPoolExecutor() as pool:
            for part in pool.map(_pair_digest, self.pairs):
                digest.update(part)
        return digest.hexdigest()[:16]

    def select(self, indices: Sequence[int]) -> "FileDataset":
        """Return some of the samples, in this order."""
        pairs = [self.pairs[index] for index in indices]
        return FileDataset(pairs, self.labels, name=self.name, remedy=self.remedy, convert_images=self.convert_images)

    def read(self, index: int) -> Sample:
        """Read sample `index`.

        Raises:
            BadFileError: A file is missing, damaged, or of the wrong kind or size.
        """
        pair = self.pairs[index]
        image = read_image(pair.image, convert=self.convert_images)
        if pair.mask is None:
            return Sample(image, None, pair.id)
        mask = read_mask(pair.mask, self.labels)
        if mask.shape != image.shape[:2]:
            raise BadFileError(
                f"{pair.mask}: is {mask.shape[1]}x{mask.shape[0]}, but its image {pair.image.name} is "
                f"{image.shape[1]}x{image.shape[0]} (width x height)"
            )
        return Sample(image, mask, pair.id)


def _pair_digest(pair: Pair) -> bytes:
    digest = hashlib.sha256(pair.id.encode())
    with pair.image.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(str(size).encode())
        for start in (0, max(0, size - FINGERPRINT_BYTES)):
            file.seek(start)
            digest.update(file.read(FINGERPRINT_BYTES))
    if pair.mask is not None:
        digest.update(pair.mask.read_bytes())
    return digest.digest()
