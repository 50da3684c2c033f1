"""Strict reading of image and mask files to arrays: a file of another kind is an error."""

import stat
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from beyondpixel.datamodules.datasets.base import Pixels
from beyondpixel.datamodules.datasets.errors import BadFileError
from beyondpixel.datamodules.datasets.labels import LabelTable, UnknownLabelsError

UPRIGHT = 1


def read_image(path: Path, *, convert: bool = False) -> Pixels:
    """Read an 8-bit RGB image.

    Args:
        path: A file that Pillow can read.
        convert: Accept any kind: gray is repeated, alpha is dropped, 16 bits are scaled down to 8, and photographs are
            turned upright as their EXIF note says.

    Returns:
        uint8 (H, W, 3).

    Raises:
        BadFileError: The file is damaged, or is not upright 8-bit RGB and `convert` is off.
    """
    image = _open(path)
    if convert:
        return np.asarray(_to_rgb(image), dtype=np.uint8)
    if image.mode != "RGB":
        raise BadFileError(f"{path}: is {_kind(image)}, not 8-bit RGB")
    if image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT:
        raise BadFileError(f"{path}: is stored rotated (EXIF orientation), so it is unclear which way up its mask is")
    return np.asarray(image, dtype=np.uint8)


def read_mask(path: Path, labels: LabelTable) -> Pixels:
    """Read a mask as class indices.

    Args:
        path: A file in a format that keeps every pixel as it is.
        labels: What its values or colors mean.

    Returns:
        uint8 (H, W), class indices and 255.

    Raises:
        BadFileError: The file is damaged, compressed with loss, of the wrong kind, or holds an unknown value.
    """
    image = _open(path)
    if image.format == "JPEG":
        raise BadFileError(f"{path}: is a JPEG, which changes labels; masks need a lossless format such as PNG")
    if image.mode not in labels.modes:
        raise BadFileError(f"{path}: is {_kind(image)}, but {labels.kind} masks are needed")
    try:
        return labels.apply(np.asarray(image if labels.kind == "index" else image.convert("RGB"), dtype=np.uint8))
    except UnknownLabelsError as error:
        raise BadFileError(f"{path}: holds {error}") from error


def _open(path: Path) -> Image.Image:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # opening a pipe would wait for its other end
            raise BadFileError(f"{path}: is not a file")
        image = Image.open(path)
        image.load()
    except BadFileError:
        raise
    except FileNotFoundError as error:
        raise BadFileError(f"{path}: is missing") from error
    except UnidentifiedImageError as error:
        raise BadFileError(f"{path}: is not an image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow reports damage by any of these: OSError in JPEG data, SyntaxError in PNG chunks
        raise BadFileError(f"{path}: is damaged ({error})") from error
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # Pillow clips 16 bits at 255 instead of scaling them
        gray = (np.asarray(upright, dtype=np.uint32) + 128) // 257
        upright = Image.fromarray(gray.astype(np.uint8))
    return upright.convert("RGB")


def _kind(image: Image.Image) -> str:
    kinds = {
        "1": "1-bit black and white",
        "L": "grayscale",
        "LA": "grayscale with alpha",
        "P": "a palette image",
        "RGB": "RGB",
        "RGBA": "RGBA (with an alpha channel)",
        "CMYK": "CMYK",
    }
    return kinds.get(image.mode, "16-bit" if image.mode.startswith("I") else f"of Pillow mode {image.mode}")
