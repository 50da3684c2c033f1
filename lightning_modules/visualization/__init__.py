"""Images, masks and predictions as RGB arrays and Matplotlib figures; Matplotlib is imported when a figure is made."""

from beyondpixel.lightning_modules.visualization.colors import (
    Color,
    Image,
    Mask,
    class_colors,
    colorize,
    default_palette,
    denormalize,
    difference_map,
    error_map,
    indexed_image,
    overlay,
)
from beyondpixel.lightning_modules.visualization.confusion import confusion_figure
from beyondpixel.lightning_modules.visualization.grid import Crop, busiest_crop, image_grid
from beyondpixel.lightning_modules.visualization.predictions import comparison_grid, prediction_grid

__all__ = [
    "Color",
    "Crop",
    "Image",
    "Mask",
    "busiest_crop",
    "class_colors",
    "colorize",
    "comparison_grid",
    "confusion_figure",
    "default_palette",
    "denormalize",
    "difference_map",
    "error_map",
    "image_grid",
    "indexed_image",
    "overlay",
    "prediction_grid",
]
