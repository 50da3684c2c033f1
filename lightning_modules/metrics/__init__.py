"""Metrics of segmentations; README.md beside this file defines each logged name."""

from beyondpixel.lightning_modules.metrics.boundary_f import BoundaryF
from beyondpixel.lightning_modules.metrics.boundary_iou import BoundaryIoU, boundary_pixel_counts
from beyondpixel.lightning_modules.metrics.confusion import MeanIoU, mean_over_classes
from beyondpixel.lightning_modules.metrics.evaluation import EvaluationMetrics
from beyondpixel.lightning_modules.metrics.image_counts import ImageCounts, PixelCountsPerImage
from beyondpixel.lightning_modules.metrics.object_size import ObjectSizeIoU
from beyondpixel.lightning_modules.metrics.trimap import TrimapIoU

__all__ = [
    "BoundaryF",
    "BoundaryIoU",
    "EvaluationMetrics",
    "ImageCounts",
    "MeanIoU",
    "ObjectSizeIoU",
    "PixelCountsPerImage",
    "TrimapIoU",
    "boundary_pixel_counts",
    "mean_over_classes",
]
