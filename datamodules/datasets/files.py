"""Pairs of image and mask files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beyondpixel.datamodules.datasets.errors import BadFileError, data_error
from beyondpixel.datamodules.datasets.labels import MaskValues
from beyondpixel.datamodules.datasets.reading import read_image, read_mask
from beyondpixel.datamodules.datasets.samples import Sample, Samples, find_faults


@dataclass(frozen=True)
class Pair:
    """One sample's files; `mask` is None where there is no truth."""

    id: str
    image: Path
    mask: Path | None


class FileSamples(Samples):
    """A split that lies in files.

    Args:
        pairs: The files.
        labels: What the mask files' values mean.
        name: The data set's name and split, for errors.
        remedy: What to do about missing or bad files.
        convert_images: Accept images of any kind, see `read_image`.

    Raises:
        DataError: There are no pairs.
    """

    def __init__(
        self, pairs: Sequence[Pair], labels: MaskValues, *, name: str, remedy: str, convert_images: bool = False
    ) -> None:
        self.pairs = list(pairs)
        self.ids = [pair.id for pair in self.pairs]
        self.labels = labels
        self.name = name
        self.remedy = remedy
        self.convert_images = convert_images
        if not self.pairs:
            raise data_error(f"{name} has no images", [], expected="at least one image", remedy=remedy)

    def __getitem__(self, index: int) -> Sample:
        try:
            return self.read(index)
        except BadFileError as error:
            # the run is over, so there is time to find whatever else is wrong, and to mend it all in one go
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
            DataError: With all files that do not.
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
