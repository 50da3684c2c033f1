"""Scores of segmentations."""

from beyondpixel.lightning_modules.metrics.confusion import (
    SegmentationScores,
    iou_per_class,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)

__all__ = ["SegmentationScores", "iou_per_class", "mean_accuracy", "mean_iou", "pixel_accuracy"]
