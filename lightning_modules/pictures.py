"""Images, masks and predictions as pictures: (H, W, 3) uint8 RGB arrays, and sheets of them."""

import colorsys
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beyondpixel.lightning_modules.details import Window, with_details
from beyondpixel.lightning_modules.sheets import Color, Picture, Swatches, sheet

__all__ = [
    "Color",
    "Mask",
    "Picture",
    "class_swatches",
    "colorize",
    "comparison_sheet",
    "default_palette",
    "denormalize",
    "difference_map",
    "error_map",
    "indexed",
    "overlay",
    "prediction_sheet",
    "sheet",
]

Mask = NDArray[np.integer]  # (H, W), a class or ignore_index for each pixel

# told apart by people of all kinds of colour vision (Okabe and Ito's vermilion and blue)
FIRST_RIGHT: Color = (213, 94, 0)
SECOND_RIGHT: Color = (0, 114, 178)
BOTH_RIGHT: Color = (236, 236, 238)
BOTH_WRONG: Color = (112, 112, 120)
RIGHT: Color = BOTH_RIGHT
WRONG: Color = (204, 51, 63)
_HATCH: tuple[Color, Color] = ((250, 250, 250), (188, 188, 196))


def default_palette(num_classes: int) -> list[Color]:
    """Distinct colours for classes that have none of their own.

    Example:
        >>> len(set(default_palette(21)))
        21
    """
    # the golden angle spreads hues evenly whatever their number; brightness alternates between neighbours
    return [
        _rgb(*colorsys.hls_to_rgb((0.6 + 0.618034 * index) % 1.0, (0.42, 0.62, 0.3)[index % 3], 0.62))
        for index in range(num_classes)
    ]


def denormalize(image: NDArray[np.floating], mean: Sequence[float], std: Sequence[float]) -> Picture:
    """Undo ``(x - mean) / std``.

    Args:
        image: (3, H, W) normalised.
        mean, std: of the channels of images in 0..1.

    Example:
        >>> denormalize(np.zeros((3, 1, 1)), mean=(0.5, 0.0, 1.0), std=(0.2, 0.2, 0.2)).tolist()
        [[[128, 0, 255]]]
    """
    colors = np.moveaxis(np.asarray(image, dtype=np.float64), 0, -1) * np.asarray(std) + np.asarray(mean)
    picture: Picture = (colors * 255).round().clip(0, 255).astype(np.uint8)
    return picture


def colorize(mask: Mask, palette: Sequence[Color], ignore_index: int = 255) -> Picture:
    """Paint each class in its colour and void as a grey hatching, which no class can be taken for.

    Args:
        mask: (H, W) of classes 0..len(palette)-1 and ``ignore_index``.
        palette: RGB colour of each class.
        ignore_index: label of void.

    Raises:
        ValueError: if the mask holds another label.

    Example:
        >>> colorize(np.array([[0, 1]]), palette=[(0, 0, 0), (128, 0, 0)]).tolist()
        [[[0, 0, 0], [128, 0, 0]]]
    """
    void = mask == ignore_index
    known = np.where(void, 0, mask)
    if known.min(initial=0) < 0 or known.max(initial=0) >= len(palette):
        raise ValueError(
            f"mask holds labels from {known.min()} to {known.max()}, but palette has {len(palette)} colours "
            f"and ignore_index is {ignore_index}"
        )
    picture = np.asarray(palette, dtype=np.uint8)[known]
    return _hatched(picture, void)


def indexed(mask: Mask, palette: Sequence[Color]) -> Image.Image:
    """A picture that holds class numbers and, for viewers, their colours as its palette.

    ``np.asarray`` of it, or of the PNG that it is saved as, gives the classes back. Above 256 classes it has 16 bits
    and no palette.

    Example:
        >>> picture = indexed(np.array([[0, 1]]), palette=[(0, 0, 0), (128, 0, 0)])
        >>> np.asarray(picture).tolist(), picture.convert("RGB").getpixel((1, 0))
        ([[0, 1]], (128, 0, 0))
    """
    if len(palette) > 256:
        return Image.fromarray(mask.astype(np.uint16))
    picture = Image.fromarray(mask.astype(np.uint8))
    picture.putpalette([channel for color in palette for channel in color])
    return picture


def overlay(
    image: Picture, mask: Mask, palette: Sequence[Color], ignore_index: int = 255, opacity: float = 0.6
) -> Picture:
    """Lay a mask's colours over its image; void leaves the image as it is.

    Example:
        >>> image = np.full((1, 2, 3), 100, dtype=np.uint8)
        >>> overlay(image, np.array([[0, 255]]), palette=[(200, 0, 0)], opacity=0.5).tolist()
        [[[150, 50, 50], [100, 100, 100]]]
    """
    colors = colorize(mask, palette, ignore_index)
    mixed = ((1 - opacity) * image + opacity * colors).round().astype(np.uint8)
    return np.where((mask == ignore_index)[..., None], image, mixed)


def error_map(preds: Mask, target: Mask, ignore_index: int = 255) -> Picture:
    """Light grey where a prediction is right, red where it is wrong, hatched where truth is void.

    Example:
        >>> error_map(np.array([[0, 1]]), np.array([[0, 0]])).tolist() == [[list(RIGHT), list(WRONG)]]
        True
    """
    picture = np.asarray([WRONG, RIGHT], dtype=np.uint8)[(preds == target).astype(int)]
    return _hatched(picture, target == ignore_index)


def difference_map(first: Mask, second: Mask, target: Mask, ignore_index: int = 255) -> Picture:
    """Which of two predictions is right: vermilion only the first, blue only the second, grey neither.

    Light grey where both are right, hatched where truth is void.

    Example:
        >>> first, second, target = np.array([[0, 1, 0, 1]]), np.array([[0, 0, 1, 1]]), np.array([[0, 0, 0, 0]])
        >>> [tuple(color) for color in difference_map(first, second, target)[0].tolist()] == [
        ...     BOTH_RIGHT, SECOND_RIGHT, FIRST_RIGHT, BOTH_WRONG]
        True
    """
    colors = np.asarray([BOTH_WRONG, FIRST_RIGHT, SECOND_RIGHT, BOTH_RIGHT], dtype=np.uint8)
    return _hatched(colors[(first == target) + 2 * (second == target)], target == ignore_index)


def prediction_sheet(
    images: Sequence[Picture],
    targets: Sequence[Mask],
    preds: Sequence[Mask],
    *,
    palette: Sequence[Color],
    class_names: Sequence[str],
    ignore_index: int = 255,
    heading: str | None = None,
) -> Image.Image:
    """One row an image: the image, its truth, the prediction and its errors.

    Example:
        >>> image, mask = np.zeros((24, 32, 3), dtype=np.uint8), np.zeros((24, 32), dtype=int)
        >>> prediction_sheet([image], [mask], [mask], palette=[(0, 0, 0)], class_names=["void"]).mode
        'RGB'
    """
    shown = [*targets, *preds]
    return sheet(
        {
            "image": images,
            "truth": [colorize(mask, palette, ignore_index) for mask in targets],
            "prediction": [colorize(mask, palette, ignore_index) for mask in preds],
            "errors": [error_map(*masks, ignore_index) for masks in zip(preds, targets, strict=True)],
        },
        legends={
            "Classes": class_swatches(shown, palette, class_names, ignore_index),
            "Errors": {"right": RIGHT, "wrong": WRONG},
        },
        heading=heading,
    )


def comparison_sheet(
    images: Sequence[Picture],
    targets: Sequence[Mask],
    first: tuple[str, Sequence[Mask]],
    second: tuple[str, Sequence[Mask]],
    *,
    palette: Sequence[Color],
    class_names: Sequence[str],
    ignore_index: int = 255,
    heading: str | None = None,
    windows: Sequence[Window] | None = None,
) -> Image.Image:
    """One row an image: the image, its truth, two predictions, and where just one of the two is right.

    Args:
        images: (H, W, 3) each.
        targets: (H, W) each.
        first, second: title (a second line holds a score, say) and (H, W) predictions; the baseline is the first.
        palette: RGB colour of each class.
        class_names: name of each class.
        ignore_index: label of void.
        heading: a line above all.
        windows: a part of each image, framed, and enlarged in a row below.

    Example:
        >>> image, mask = np.zeros((24, 32, 3), dtype=np.uint8), np.zeros((24, 32), dtype=int)
        >>> picture = comparison_sheet(
        ...     [image], [mask], ("CE\\nmIoU 38.7", [mask]), ("RMI\\nmIoU 42.6", [mask]),
        ...     palette=[(0, 0, 0)], class_names=["background"])
        >>> picture.width > picture.height
        True
    """
    (first_title, first_preds), (second_title, second_preds) = first, second
    first_name, second_name = first_title.splitlines()[0], second_title.splitlines()[0]
    masks = {"truth": targets, first_title: first_preds, second_title: second_preds}
    differences = [difference_map(*row, ignore_index) for row in zip(first_preds, second_preds, targets, strict=True)]
    columns: dict[str, Sequence[Picture]] = {
        "image": images,
        **{title: [colorize(mask, palette, ignore_index) for mask in column] for title, column in masks.items()},
        "where they differ": differences,
    }
    if windows is not None:
        columns = {title: with_details(pictures, windows) for title, pictures in columns.items()}
    return sheet(
        columns,
        legends={
            "Classes": class_swatches([*targets, *first_preds, *second_preds], palette, class_names, ignore_index),
            "Difference": {
                f"only {second_name} is right": SECOND_RIGHT,
                f"only {first_name} is right": FIRST_RIGHT,
                "both are right": BOTH_RIGHT,
                "both are wrong": BOTH_WRONG,
            },
        },
        heading=heading,
    )


def class_swatches(
    masks: Collection[Mask], palette: Sequence[Color], class_names: Sequence[str], ignore_index: int = 255
) -> Swatches:
    """Legend of the classes that the masks hold, in the classes' order, and of void if it is there.

    Example:
        >>> class_swatches([np.array([[2, 0]])], [(0, 0, 0), (1, 1, 1), (2, 2, 2)], ["sky", "road", "car"])
        {'sky': (0, 0, 0), 'car': (2, 2, 2)}
    """
    present = set().union(*(np.unique(mask).tolist() for mask in masks))
    swatches: dict[str, Color | Picture] = {
        name: _rgb(*(channel / 255 for channel in color))
        for index, (name, color) in enumerate(zip(class_names, palette, strict=True))
        if index in present and index != ignore_index
    }
    if ignore_index in present:
        void = np.ones((16, 16), dtype=bool)
        swatches["not labelled"] = _hatched(np.zeros((16, 16, 3), dtype=np.uint8), void)
    return swatches


def _hatched(picture: Picture, void: NDArray[np.bool_]) -> Picture:
    """Diagonal stripes of two greys where ``void``; a palette has one colour a class, so stripes are unmistakable."""
    height, width = void.shape
    stripe = (np.arange(height)[:, None] + np.arange(width)) // 2 % 2
    return np.where(void[..., None], np.asarray(_HATCH, dtype=np.uint8)[stripe], picture)


def _rgb(red: float, green: float, blue: float) -> Color:
    return round(red * 255), round(green * 255), round(blue * 255)
