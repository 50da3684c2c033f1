"""An image, its target and its prediction as three small files that any viewer opens."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import PIL.Image

from beyondpixel.lightning_modules.visualization import Color, Image, Mask, indexed_image

VOID_COLOR: Color = (224, 224, 224)
JPEG_QUALITY = 85


def save_sample(
    folder: Path,
    name: str,
    image: Image,
    target: Mask,
    preds: Mask,
    *,
    palette: Sequence[Color],
    ignore_index: int = 255,
) -> None:
    """Write ``NAME.image.jpg``, ``NAME.target.png`` and ``NAME.prediction.png``.

    The PNGs hold class numbers and, for viewers, the palette: ``np.asarray(Image.open(path))`` gives the classes back.

    Args:
        folder: where to write; created if it is missing.
        name: the image's id; characters that a file name cannot hold are percent-encoded.
        image: uint8 (H, W, 3).
        target, preds: (H, W) classes 0..C-1; ``target`` also ``ignore_index``, which is written as 255.
        palette: RGB color of each of the C classes, C at most 255.
        ignore_index: target label of void.

    Raises:
        ValueError: if there are too many classes for a PNG with a palette.
    """
    if len(palette) > 255:
        raise ValueError(f"a palette PNG has room for 255 classes and void, got {len(palette)} classes")
    folder.mkdir(parents=True, exist_ok=True)
    stem = quote(name, safe="")
    PIL.Image.fromarray(image).save(folder / f"{stem}.image.jpg", quality=JPEG_QUALITY)
    for kind, mask in (("target", np.where(target == ignore_index, 255, target)), ("prediction", preds)):
        indexed_image(mask, palette, VOID_COLOR).save(folder / f"{stem}.{kind}.png", optimize=True)
