"""Strict reading of image and mask files into arrays: a file of another kind is an error."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torchvision.io import decode_jpeg

from beyondpixel.datamodules.datasets.base import Pixels
from beyondpixel.datamodules.datasets.errors import BadFileError
from beyondpixel.datamodules.datasets.labels import LabelTable

ROTATED = range(2, 9)  # EXIF orientations; 1 is upright, 0 unknown
# formats, and compressions of TIFF; the last three can be lossless, too, but whether a file is cannot be told
_LOSSY = {
    "JPEG": "a JPEG",
    "MPO": "a JPEG",
    "jpeg": "compressed as JPEG",
    "tiff_jpeg": "compressed as JPEG",
    "JPEG2000": "a JPEG 2000",
    "AVIF": "an AVIF",
    "webp": "compressed as WebP",
}


def read_image(path: Path, *, convert: bool = False) -> Pixels:
    """Read an 8-bit RGB image.

    Args:
        path: A file that Pillow can read.
        convert: Accept any kind of 8 or 16 bits: gray is repeated, alpha is dropped, 16 bits are scaled down to 8, and
            photographs are rotated upright according to their EXIF orientation.

    Returns:
        uint8 (H, W, 3).

    Raises:
        BadFileError: The file is damaged, has more than 16 bits, or is not upright 8-bit RGB and `convert` is off.
    """
    with _opened(path) as image:
        if convert:
            if _is_32_bit(image):
                raise BadFileError(
                    f"{path}: is {_kind(image)}: which values are black and white is unclear; store it as 8-bit RGB"
                )
            return np.asarray(_to_rgb(image), dtype=np.uint8)
        if image.mode != "RGB" or _bits(image, path) > 8:
            kind = "16-bit" if image.mode == "RGB" else _kind(image)
            raise BadFileError(f"{path}: is {kind}, not 8-bit RGB")
        if image.getexif().get(ExifTags.Base.Orientation) in ROTATED:
            raise BadFileError(
                f"{path}: is stored rotated (EXIF orientation), so it is unclear which way up its mask is"
            )
        if image.format == "JPEG":  # the same pixels as Pillow's, in two thirds of the time
            data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
            return np.asarray(decode_jpeg(data).permute(1, 2, 0), dtype=np.uint8)
        return np.asarray(image, dtype=np.uint8)


def read_mask(path: Path, labels: LabelTable) -> Pixels:
    """Read a mask as class indices.

    Args:
        path: A file in a lossless format.
        labels: Mapping of its values or colors to class indices.

    Returns:
        uint8 (H, W), class indices and 255.

    Raises:
        BadFileError: The file is damaged, of a format that may be lossy, of the wrong kind, or holds an unknown value.
    """
    with _opened(path) as image:
        for form in (image.format, image.info.get("compression")):
            if form in _LOSSY:
                raise BadFileError(
                    f"{path}: is {_LOSSY[form]}, which can change labels; masks need a lossless format such as PNG"
                )
        if image.mode not in labels.modes:
            raise BadFileError(f"{path}: is {_kind(image)}, but {labels.kind} masks are needed")
        if image.mode == "L" and _bits(image, path) < 8:
            # Pillow spreads such values over 0 to 255, so that the highest label would become 255
            raise BadFileError(
                f"{path}: is {_bits(image, path)}-bit grayscale; store its labels in 8 bits or as a palette image"
            )
        values = np.asarray(image if labels.kind == "index" else image.convert("RGB"), dtype=np.uint8)
    try:
        return labels.apply(values)
    except ValueError as error:
        raise BadFileError(f"{path}: holds {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image, reading its header; errors while the pixels are read in the block name the file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # opening a pipe would wait for its other end
            raise BadFileError(f"{path}: is not a file")
        with Image.open(path) as image:
            yield image
    except BadFileError:
        raise
    except FileNotFoundError as error:
        raise BadFileError(f"{path}: is missing") from error
    except UnidentifiedImageError as error:
        raise BadFileError(f"{path}: is not an image") from error
    except RuntimeError as error:  # from torchvision, starting with the location in its source
        raise BadFileError(f"{path}: is damaged ({str(error).rpartition(', ')[2]})") from error
    except Image.DecompressionBombError as error:
        raise BadFileError(
            f"{path}: has more than about 178 million pixels, Pillow's limit; cut image and mask into tiles"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, such as a missing permission
            raise BadFileError(f"{path}: cannot be read ({error.strerror})") from error
        # Pillow reports damage by any of these: OSError in JPEG data, SyntaxError in PNG chunks
        raise BadFileError(f"{path}: is damaged ({error})") from error


def _bits(image: Image.Image, path: Path) -> int:
    """Return the bits per channel in the file: to Pillow, 16-bit color is RGB as well, and 2-bit gray is L."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]  # the header's bit depth
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,))))
    return 8


def _is_32_bit(image: Image.Image) -> bool:
    # Pillow opens 16-bit PGM files, and older versions 16-bit PNG files, in a 32-bit mode
    return image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM"))


def _to_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # Pillow clips 16 bits at 255 instead of scaling them
        gray = (np.asarray(upright, dtype=np.uint32) + 128) // 257
        upright = Image.fromarray(gray.astype(np.uint8))
    return upright.convert("RGB")


def _kind(image: Image.Image) -> str:
    if _is_32_bit(image):
        return f"32-bit (Pillow mode {image.mode})"
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
