"""Archive of images, their targets and predictions, as small image files that any viewer opens."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import PIL.Image

from beyondpixel.lightning_modules.visualization import Color, Image, Mask, indexed_image

VOID_COLOR: Color = (224, 224, 224)
JPEG_QUALITY = 85


def write_samples(
    file: Path, samples: Mapping[str, tuple[Image, Mask, Mask]], palette: Sequence[Color], *, ignore_index: int = 255
) -> None:
    """Write samples as one file: clusters limit the number of files rather than their size.

    Each sample is three members, `NAME.image.jpg`, `NAME.target.png` and `NAME.prediction.png`. The PNGs contain class
    numbers and, for viewers, the palette: `np.asarray(Image.open(member))` returns the classes.

    Args:
        file: the archive; its folder is created if missing; if the disk is full, no partial file is left.
        samples: uint8 images (H, W, 3), targets and predictions (H, W) of classes, by the images' ids; characters that
            a file name cannot contain are percent-encoded.
        palette: RGB color of each of the C classes, C at most 255.
        ignore_index: target label of void, which is written as 255.

    Raises:
        ValueError: if there are too many classes for a PNG with a palette.

    Example:
        >>> import tempfile
        >>> mask = np.array([[0, 1]])
        >>> samples = {"a": (np.zeros((1, 2, 3), np.uint8), mask, mask)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_samples(Path(folder, "test.zip"), samples, [(0, 0, 0), (255, 0, 0)])
        ...     sorted(read_samples(Path(folder, "test.zip"))["a"])
        ['image.jpg', 'prediction.png', 'target.png']
    """
    if len(palette) > 255:
        raise ValueError(f"a palette PNG has room for 255 classes and void, got {len(palette)} classes")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, (image, target, preds) in samples.items():
            void = np.where(target == ignore_index, 255, target)
            members = {
                "image.jpg": _encoded(PIL.Image.fromarray(image), "jpeg", quality=JPEG_QUALITY),
                "target.png": _encoded(indexed_image(void, palette, VOID_COLOR), "png", optimize=True),
                "prediction.png": _encoded(indexed_image(preds, palette, VOID_COLOR), "png", optimize=True),
            }
            for what, encoded in members.items():
                archive.writestr(quote(f"{name}.{what}", safe=""), encoded)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        file.write_bytes(content.getvalue())
    except OSError:
        file.unlink(missing_ok=True)
        raise


def _encoded(image: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read_samples(file: Path) -> dict[str, dict[str, bytes]]:
    """Read the image files of each sample by its id; keys are `image.jpg`, `target.png` and `prediction.png`.

    Raises:
        zipfile.BadZipFile: if the file is damaged.
    """
    samples: dict[str, dict[str, bytes]] = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            name, what, kind = unquote(member).rsplit(".", 2)
            samples.setdefault(name, {})[f"{what}.{kind}"] = archive.read(member)
    return samples
