"""Images, their targets and predictions as small image files in one archive, which any viewer opens."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import PIL.Image

from beyondpixel.lightning_modules.visualization import Color, Image, Mask, indexed_image

VOID_COLOR: Color = (224, 224, 224)
JPEG_QUALITY = 85


class SampleArchive:
    """Collects samples, and writes them all as one file: clusters limit the number of files rather than their size.

    Each sample is three members, ``NAME.image.jpg``, ``NAME.target.png`` and ``NAME.prediction.png``. The PNGs hold
    class numbers and, for viewers, the palette: ``np.asarray(Image.open(member))`` gives the classes back.

    Args:
        palette: RGB color of each of the C classes, C at most 255.
        ignore_index: target label of void, which is written as 255.

    Raises:
        ValueError: if there are too many classes for a PNG with a palette.

    Example:
        >>> import tempfile
        >>> samples = SampleArchive([(0, 0, 0), (255, 0, 0)])
        >>> mask = np.array([[0, 1]])
        >>> samples.add("a", np.zeros((1, 2, 3), np.uint8), target=mask, preds=mask)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     samples.save(Path(folder, "test.zip"))
        ...     sorted(read_samples(Path(folder, "test.zip"))["a"])
        ['image.jpg', 'prediction.png', 'target.png']
    """

    def __init__(self, palette: Sequence[Color], *, ignore_index: int = 255) -> None:
        if len(palette) > 255:
            raise ValueError(f"a palette PNG has room for 255 classes and void, got {len(palette)} classes")
        self._palette = palette
        self._ignore_index = ignore_index
        self._content = io.BytesIO()
        self._archive = zipfile.ZipFile(self._content, "w")

    def add(self, name: str, image: Image, *, target: Mask, preds: Mask) -> None:
        """Add a sample.

        Args:
            name: the image's id; characters that a file name cannot hold are percent-encoded.
            image: uint8 (H, W, 3).
            target, preds: (H, W) classes 0..C-1; ``target`` also ``ignore_index``.
        """
        void = np.where(target == self._ignore_index, 255, target)
        self._add(f"{name}.image.jpg", PIL.Image.fromarray(image), quality=JPEG_QUALITY)
        self._add(f"{name}.target.png", indexed_image(void, self._palette, VOID_COLOR), optimize=True)
        self._add(f"{name}.prediction.png", indexed_image(preds, self._palette, VOID_COLOR), optimize=True)

    def _add(self, name: str, image: PIL.Image.Image, **options: Any) -> None:
        buffer = io.BytesIO()
        image.save(buffer, "jpeg" if name.endswith(".jpg") else "png", **options)
        self._archive.writestr(quote(name, safe=""), buffer.getvalue())

    def save(self, file: Path) -> None:
        """Write the file, and its folder if that is missing; where the disk is full, nothing is left of it."""
        self._archive.close()
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.write_bytes(self._content.getvalue())
        except OSError:
            file.unlink(missing_ok=True)
            raise


def read_samples(file: Path) -> dict[str, dict[str, bytes]]:
    """The image files of each sample by its id; keys are ``image.jpg``, ``target.png`` and ``prediction.png``.

    Raises:
        zipfile.BadZipFile: if the file is damaged.
    """
    samples: dict[str, dict[str, bytes]] = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            name, what, kind = unquote(member).rsplit(".", 2)
            samples.setdefault(name, {})[f"{what}.{kind}"] = archive.read(member)
    return samples
