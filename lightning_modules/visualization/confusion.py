"""A confusion matrix as a Matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL = 0.42  # inches: space for three digits at 8 points
_MAX_NUMBERED = 40  # classes; numbers in more cells are not legible


def confusion_figure(matrix: NDArray[np.integer], class_names: Sequence[str], *, heading: str = "") -> Figure:
    """Draw a confusion matrix in percent of each class's pixels, so that rows add up to 100.

    Cells under half a percent have no number. Each class's share of all pixels is beside its name; a class without
    pixels in the target has an empty row.

    Args:
        matrix: (C, C) counts, rows the target, columns the prediction.
        class_names: C names.
        heading: title of the figure.

    Raises:
        ValueError: if the matrix is not (C, C).

    Example:
        >>> figure = confusion_figure(np.array([[3, 1], [2, 4]]), ["road", "car"])
        >>> figure.axes[0].get_xlabel()
        'prediction'
    """
    from matplotlib.figure import Figure

    classes = len(class_names)
    if matrix.shape != (classes, classes):
        raise ValueError(f"matrix must be (C, C) with C = {classes} class_names, got {matrix.shape}")
    pixels = matrix.sum(axis=1)
    percent = np.where(pixels[:, None] > 0, 100 * matrix / np.maximum(1, pixels)[:, None], np.nan)
    shares = 100 * pixels / max(1, pixels.sum())

    side = _CELL * classes
    # without pyplot, which has global state and may need a display
    figure = Figure(figsize=(side + 3.2, side + 2.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(classes), list(class_names), rotation=90)
    axes.set_yticks(range(classes), [f"{name}  {part:.1f} %" for name, part in zip(class_names, shares, strict=True)])
    axes.tick_params(length=0, labelsize=8)
    axes.set(xlabel="prediction", ylabel="target, with its share of all pixels")
    for ticks in (axes.set_xticks, axes.set_yticks):
        ticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_title(heading, fontsize=10)
    if classes <= _MAX_NUMBERED:
        for row, column in np.argwhere(percent >= 0.5):
            value = percent[row, column]
            color = "white" if value > 55 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(shown, ax=axes, shrink=0.6, label="percent of the class's pixels")
    return figure
