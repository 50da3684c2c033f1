"""Losses for semantic segmentation, as metrics that are differentiable."""

from beyondpixel.losses.affinity import AdaptiveAffinityFieldLoss, AffinityFieldLoss
from beyondpixel.losses.base import SegmentationLoss
from beyondpixel.losses.cross_entropy import BinaryCrossEntropyLoss, CrossEntropyLoss
from beyondpixel.losses.pyramid import PyramidLoss
from beyondpixel.losses.registry import LOSSES, build_loss
from beyondpixel.losses.rmi import RMILoss

__all__ = [
    "LOSSES",
    "AdaptiveAffinityFieldLoss",
    "AffinityFieldLoss",
    "BinaryCrossEntropyLoss",
    "CrossEntropyLoss",
    "PyramidLoss",
    "RMILoss",
    "SegmentationLoss",
    "build_loss",
]
