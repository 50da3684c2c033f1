"""Image grids of predictions beside their target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from beyondpixel.lightning_modules.visualization.colors import (
    BOTH_RIGHT,
    BOTH_WRONG,
    FIRST_RIGHT,
    RIGHT,
    SECOND_RIGHT,
    WRONG,
    Color,
    Image,
    Mask,
    class_colors,
    colorize,
    difference_map,
    error_map,
)
from beyondpixel.lightning_modules.visualization.grid import Crop, image_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def prediction_grid(
    images: Sequence[Image],
    targets: Sequence[Mask],
    preds: Sequence[Mask],
    *,
    palette: Sequence[Color],
    class_names: Sequence[str],
    ignore_index: int = 255,
    heading: str = "",
) -> Figure:
    """Draw a row for each image: the image, its target, the prediction and its errors.

    Args:
        images: (H, W, 3) uint8 each.
        targets, preds: (H, W) each.
        palette: RGB color of each class.
        class_names: name of each class.
        ignore_index: label of void.
        heading: title of the figure.

    Example:
        >>> import numpy as np
        >>> image, mask = np.zeros((24, 32, 3), dtype=np.uint8), np.zeros((24, 32), dtype=int)
        >>> figure = prediction_grid([image], [mask], [mask], palette=[(0, 0, 0)], class_names=["road"])
    """
    return image_grid(
        {
            "image": images,
            "target": [colorize(mask, palette, ignore_index) for mask in targets],
            "prediction": [colorize(mask, palette, ignore_index) for mask in preds],
            "errors": [error_map(*masks, ignore_index) for masks in zip(preds, targets, strict=True)],
        },
        legends={
            "Classes": class_colors([*targets, *preds], palette, class_names, ignore_index),
            "Errors": {"right": RIGHT, "wrong": WRONG},
        },
        heading=heading,
    )


def comparison_grid(
    images: Sequence[Image],
    targets: Sequence[Mask],
    first: tuple[str, Sequence[Mask]],
    second: tuple[str, Sequence[Mask]],
    *,
    palette: Sequence[Color],
    class_names: Sequence[str],
    ignore_index: int = 255,
    heading: str = "",
    captions: tuple[Sequence[str], Sequence[str]] | None = None,
    crops: Sequence[Crop] | None = None,
) -> Figure:
    """Draw a row for each image: the image, its target, two predictions, and where just one of the two is right.

    Args:
        images: (H, W, 3) uint8 each.
        targets: (H, W) each.
        first, second: title (with a metric in a second line, say) and (H, W) predictions; the first is the baseline.
        palette: RGB color of each class.
        class_names: name of each class.
        ignore_index: label of void.
        heading: title of the figure.
        captions: a text in the corner of each image of the first and the second prediction, such as its boundary IoU.
        crops: a crop of each image that is framed, and enlarged in a row below (`busiest_crop`).

    Example:
        >>> import numpy as np
        >>> image, mask = np.zeros((24, 32, 3), dtype=np.uint8), np.zeros((24, 32), dtype=int)
        >>> figure = comparison_grid(
        ...     [image], [mask], ("CE\\nmIoU 38.7", [mask]), ("RMI\\nmIoU 42.6", [mask]),
        ...     palette=[(0, 0, 0)], class_names=["background"])
    """
    names = [title.splitlines()[0] for title, _ in (first, second)]
    masks = {"target": targets, first[0]: first[1], second[0]: second[1]}
    triples = zip(first[1], second[1], targets, strict=True)
    return image_grid(
        {
            "image": images,
            **{title: [colorize(mask, palette, ignore_index) for mask in column] for title, column in masks.items()},
            "difference": [difference_map(*triple, ignore_index) for triple in triples],
        },
        legends={
            "Classes": class_colors([*targets, *first[1], *second[1]], palette, class_names, ignore_index),
            "Difference": {
                f"only {names[1]} is right": SECOND_RIGHT,
                f"only {names[0]} is right": FIRST_RIGHT,
                "both are right": BOTH_RIGHT,
                "both are wrong": BOTH_WRONG,
            },
        },
        heading=heading,
        captions=None if captions is None else {first[0]: captions[0], second[0]: captions[1]},
        crops=crops,
    )
