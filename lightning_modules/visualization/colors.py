"""Colors of classes, errors and differences: label maps as (H, W, 3) uint8 RGB arrays."""

import colorsys
from collections.abc import Collection, Sequence

import numpy as np
import PIL.Image
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (H, W, 3), RGB
Mask = NDArray[np.integer]  # (H, W), a class or ignore_index for each pixel
Color = tuple[int, int, int]

# distinct for all kinds of color vision (Okabe and Ito's vermilion and blue)
FIRST_RIGHT: Color = (213, 94, 0)
SECOND_RIGHT: Color = (0, 114, 178)
BOTH_RIGHT: Color = (236, 236, 238)
BOTH_WRONG: Color = (112, 112, 120)
RIGHT: Color = BOTH_RIGHT
WRONG: Color = (204, 51, 63)
VOID: tuple[Color, Color] = ((250, 250, 250), (188, 188, 196))  # stripes, distinct from any class
VOID_NAME = "not labeled"


def default_palette(num_classes: int) -> list[Color]:
    """Generate distinct colors for classes without a palette.

    Example:
        >>> len(set(default_palette(21)))
        21
    """
    # the golden angle spreads hues evenly whatever their number; brightness alternates between neighbors
    colors = (
        colorsys.hls_to_rgb((0.6 + 0.618034 * index) % 1.0, (0.42, 0.62, 0.3)[index % 3], 0.62)
        for index in range(num_classes)
    )
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colors]


def denormalize(image: NDArray[np.floating], mean: Sequence[float], std: Sequence[float]) -> Image:
    """Undo `(x - mean) / std` and round to 8 bits.

    Args:
        image: (3, H, W) normalized.
        mean, std: of the channels of images in 0..1.

    Returns:
        (H, W, 3) uint8.

    Example:
        >>> denormalize(np.zeros((3, 1, 1)), mean=(0.5, 0.0, 1.0), std=(0.2, 0.2, 0.2)).tolist()
        [[[128, 0, 255]]]
    """
    colors = np.moveaxis(np.asarray(image, dtype=np.float64), 0, -1) * np.asarray(std) + np.asarray(mean)
    rounded: Image = (colors * 255).round().clip(0, 255).astype(np.uint8)
    return rounded


def colorize(mask: Mask, palette: Sequence[Color], ignore_index: int = 255) -> Image:
    """Paint each class in its color and void in gray stripes.

    Args:
        mask: (H, W) of classes 0..len(palette)-1 and `ignore_index`.
        palette: RGB color of each class.
        ignore_index: label of void.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: if the mask contains another label.

    Example:
        >>> colorize(np.array([[0, 1]]), palette=[(0, 0, 0), (128, 0, 0)]).tolist()
        [[[0, 0, 0], [128, 0, 0]]]
    """
    void = mask == ignore_index
    known = np.where(void, 0, mask)
    if known.min(initial=0) < 0 or known.max(initial=0) >= len(palette):
        raise ValueError(
            f"mask holds labels from {known.min()} to {known.max()}, but palette has {len(palette)} colors "
            f"and ignore_index is {ignore_index}"
        )
    return _with_stripes(np.asarray(palette, dtype=np.uint8)[known], void)


def indexed_image(mask: Mask, palette: Sequence[Color], void_color: Color | None = None) -> PIL.Image.Image:
    """Make an image of class numbers with their colors as its palette.

    `np.asarray` of it, or of the PNG that it is saved as, returns the classes. Above 256 classes it has 16 bits and no
    palette.

    Args:
        mask: (H, W) of classes 0..len(palette)-1, and 255 for void if there is a `void_color`.
        palette: RGB color of each class.
        void_color: color of all values beyond the classes.

    Example:
        >>> image = indexed_image(np.array([[0, 1]]), palette=[(0, 0, 0), (128, 0, 0)])
        >>> np.asarray(image).tolist(), image.convert("RGB").getpixel((1, 0))
        ([[0, 1]], (128, 0, 0))
    """
    if len(palette) > 256:
        return PIL.Image.fromarray(mask.astype(np.uint16))
    colors = list(palette) if void_color is None else [*palette, *[void_color] * (256 - len(palette))]
    image = PIL.Image.fromarray(mask.astype(np.uint8))
    image.putpalette([channel for color in colors for channel in color])
    return image


def overlay(image: Image, mask: Mask, palette: Sequence[Color], alpha: float = 0.6, ignore_index: int = 255) -> Image:
    """Blend a mask's colors with its image; void pixels keep the image's colors.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) of classes 0..len(palette)-1 and `ignore_index`.
        palette: RGB color of each class.
        alpha: weight of the colors, 0..1.
        ignore_index: label of void.

    Example:
        >>> image = np.full((1, 2, 3), 100, dtype=np.uint8)
        >>> overlay(image, np.array([[0, 255]]), palette=[(200, 0, 0)], alpha=0.5).tolist()
        [[[150, 50, 50], [100, 100, 100]]]
    """
    mixed = ((1 - alpha) * image + alpha * colorize(mask, palette, ignore_index)).round().astype(np.uint8)
    return np.where((mask == ignore_index)[..., None], image, mixed)


def error_map(preds: Mask, target: Mask, ignore_index: int = 255) -> Image:
    """Paint right pixels light gray, wrong ones red and void in stripes.

    Example:
        >>> error_map(np.array([[0, 1]]), np.array([[0, 0]])).tolist() == [[list(RIGHT), list(WRONG)]]
        True
    """
    colors = np.asarray([WRONG, RIGHT], dtype=np.uint8)
    return _with_stripes(colors[(preds == target).astype(int)], target == ignore_index)


def difference_map(first: Mask, second: Mask, target: Mask, ignore_index: int = 255) -> Image:
    """Paint vermilion where only the first prediction is right, blue where only the second is.

    Light gray is where both are right, dark gray where neither is, stripes are void.

    Example:
        >>> first, second, target = np.array([[0, 1, 0, 1]]), np.array([[0, 0, 1, 1]]), np.array([[0, 0, 0, 0]])
        >>> [tuple(color) for color in difference_map(first, second, target)[0].tolist()] == [
        ...     BOTH_RIGHT, SECOND_RIGHT, FIRST_RIGHT, BOTH_WRONG]
        True
    """
    colors = np.asarray([BOTH_WRONG, FIRST_RIGHT, SECOND_RIGHT, BOTH_RIGHT], dtype=np.uint8)
    return _with_stripes(colors[(first == target) + 2 * (second == target)], target == ignore_index)


def class_colors(
    masks: Collection[Mask], palette: Sequence[Color], class_names: Sequence[str], ignore_index: int = 255
) -> dict[str, Color | None]:
    """Return the legend of the classes in the masks, in class order; None is void.

    Example:
        >>> class_colors([np.array([[2, 0, 255]])], [(0, 0, 0), (1, 1, 1), (2, 2, 2)], ["sky", "road", "car"])
        {'sky': (0, 0, 0), 'car': (2, 2, 2), 'not labeled': None}
    """
    present = set().union(*(np.unique(mask).tolist() for mask in masks))
    colors: dict[str, Color | None] = {}
    for index, (name, (red, green, blue)) in enumerate(zip(class_names, palette, strict=True)):
        if index in present and index != ignore_index:
            colors[name] = (int(red), int(green), int(blue))
    return {**colors, VOID_NAME: None} if ignore_index in present else colors


def _with_stripes(image: Image, void: NDArray[np.bool_]) -> Image:
    height, width = void.shape
    stripe = (np.arange(height)[:, None] + np.arange(width)) // 2 % 2
    return np.where(void[..., None], np.asarray(VOID, dtype=np.uint8)[stripe], image)
