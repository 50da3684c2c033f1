"""A confusion matrix as a picture."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

_CELL = 0.42  # inches: room for three digits of 8 points
_NUMBERED = 40  # classes; numbers in more cells than that are no longer read


def confusion_picture(
    confusion: NDArray[np.integer], class_names: Sequence[str], *, heading: str | None = None
) -> Image.Image:
    """Draw where the pixels of each class went, in percent of the class (rows add up to 100).

    Cells under half a percent have no number; a class without pixels in the truth has an empty row, and its share of
    all pixels stands behind each class's name.

    Args:
        confusion: (C, C) counts, rows the truth, columns the prediction.
        class_names: C names.
        heading: a line above.

    Raises:
        ValueError: if the names do not fit.

    Example:
        >>> confusion_picture(np.array([[3, 1], [2, 4]]), ["road", "car"]).mode
        'RGB'
    """
    classes = len(class_names)
    if confusion.shape != (classes, classes):
        raise ValueError(f"confusion must be (C, C) with C = {classes} class_names, got {confusion.shape}")
    percent = row_percentages(confusion)
    share = 100 * confusion.sum(axis=1) / max(1, confusion.sum())

    side = _CELL * classes
    # a figure of its own rather than pyplot's: that has global state, and may want a display
    figure = Figure(figsize=(side + 3.2, side + 2.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(classes), list(class_names), rotation=90)
    axes.set_yticks(range(classes), [f"{name}  {part:.1f} %" for name, part in zip(class_names, share, strict=True)])
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth, with its share of all pixels")
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    if heading is not None:
        axes.set_title(heading, fontsize=10)
    if classes <= _NUMBERED:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.5:
                color = "white" if value > 55 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(shown, ax=axes, shrink=0.6, label="percent of the true pixels")

    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")


def row_percentages(confusion: NDArray[np.integer]) -> NDArray[np.float64]:
    """Percent of each row's sum; NaN in the rows that are empty.

    Example:
        >>> row_percentages(np.array([[3, 1], [0, 0]])).tolist()
        [[75.0, 25.0], [nan, nan]]
    """
    counts = confusion.astype(np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    percent: NDArray[np.float64] = 100 * np.divide(
        counts, totals, out=np.full(counts.shape, np.nan), where=totals.repeat(len(counts), axis=1) > 0
    )
    return percent
