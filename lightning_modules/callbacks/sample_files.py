"""One image with its truth and its prediction, as three small files that any viewer opens."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from beyondpixel.lightning_modules.pictures import Color, Mask, Picture

VOID_COLOR: Color = (224, 224, 224)
JPEG_QUALITY = 85


def save_sample(
    folder: Path,
    name: str,
    image: Picture,
    truth: Mask,
    preds: Mask,
    *,
    palette: Sequence[Color],
    ignore_index: int = 255,
) -> None:
    """Write ``NAME.image.jpg``, ``NAME.truth.png`` and ``NAME.prediction.png``.

    The PNGs hold class numbers and, for viewers, the palette: ``np.asarray(Image.open(path))`` gives the classes back.

    Args:
        folder: where to write; made if it is not there.
        name: the image's id; what a file name must not hold is percent-encoded.
        image: uint8 (H, W, 3).
        truth, preds: (H, W) classes 0..C-1; ``truth`` also ``ignore_index``, which is written as 255.
        palette: RGB colour of each of the C classes, C at most 255.
        ignore_index: truth label of void.

    Raises:
        ValueError: for more classes than a palette PNG has room for beside void.
    """
    if len(palette) > 255:
        raise ValueError(f"a palette PNG has room for 255 classes and void, got {len(palette)} classes")
    folder.mkdir(parents=True, exist_ok=True)
    stem = quote(name, safe="")
    Image.fromarray(image).save(folder / f"{stem}.image.jpg", quality=JPEG_QUALITY)
    colors = np.full((256, 3), VOID_COLOR, dtype=np.uint8)
    colors[: len(palette)] = palette
    for kind, mask in (("truth", np.where(truth == ignore_index, 255, truth)), ("prediction", preds)):
        picture = Image.fromarray(mask.astype(np.uint8))
        picture.putpalette(colors.tobytes())
        picture.save(folder / f"{stem}.{kind}.png", optimize=True)
