"""Scores of segmentations; README.md beside this file says what each logged name means, exactly."""

from beyondpixel.lightning_modules.metrics.boundary_f import BoundaryFScore
from beyondpixel.lightning_modules.metrics.boundary_iou import BoundaryIoU, boundary_areas
from beyondpixel.lightning_modules.metrics.confusion import (
    SegmentationScores,
    frequency_weighted_iou,
    iou_per_class,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)
from beyondpixel.lightning_modules.metrics.evaluation import EvaluationScores, ImageCounts
from beyondpixel.lightning_modules.metrics.labels import image_areas
from beyondpixel.lightning_modules.metrics.object_size import ObjectSizeScores
from beyondpixel.lightning_modules.metrics.trimap import TrimapScores

__all__ = [
    "BoundaryFScore",
    "BoundaryIoU",
    "EvaluationScores",
    "ImageCounts",
    "ObjectSizeScores",
    "SegmentationScores",
    "TrimapScores",
    "boundary_areas",
    "frequency_weighted_iou",
    "image_areas",
    "iou_per_class",
    "mean_accuracy",
    "mean_iou",
    "pixel_accuracy",
]
