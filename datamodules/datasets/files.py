"""Pairs of image and mask files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beyondpixel.datamodules.datasets.errors import data_error
from beyondpixel.datamodules.datasets.labels import LabelTable
from beyondpixel.datamodules.datasets.reading import BadFileError, read_image, read_mask
from beyondpixel.datamodules.datasets.samples import Sample, Samples


@dataclass(frozen=True)
class Pair:
    """One sample's files; `mask` is None where there is no truth."""

    id: str
    image: Path
    mask: Path | None


class FileSamples(Samples):
    """A split that lies in files.

    Args:
        pairs: The files, which must all exist.
        labels: What the mask files' values mean.
        name: The data set's name and split, for errors.
        remedy: What to do about missing or bad files.
        convert_images: Accept images of any kind, see `read_image`.

    Raises:
        DataError: No pairs, or files that do not exist, all of them listed.
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
            raise data_error(f"{name} has no images", [], expected="at least one image", remedy=remedy)
        files = [file for index in range(len(self)) for file in self.files(index)]
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise data_error(
                f"{name}: {len(missing)} of {len(files)} files are missing",
                missing,
                expected="every file that the list names",
                remedy=remedy,
            )

    def files(self, index: int) -> list[Path]:
        """Image and, where there is one, mask."""
        pair = self.pairs[index]
        return [pair.image] if pair.mask is None else [pair.image, pair.mask]

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        try:
            return self.read(pair)
        except BadFileError as error:
            raise data_error(
                f"{self.name}: a file cannot be used",
                [str(error)],
                expected=f"8-bit RGB images, index masks of the same size with labels {self.labels.allowed}",
                remedy=self.remedy,
            ) from error

    def read(self, pair: Pair) -> Sample:
        """Read one pair.

        Raises:
            BadFileError: A file is damaged or of the wrong kind or size; the message names it.
        """
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
