"""Losses for semantic segmentation, as differentiable metrics."""

from beyondpixel.losses.affinity import AdaptiveAffinityFieldLoss, AffinityFieldLoss
from beyondpixel.losses.base import SegmentationLoss
from beyondpixel.losses.combined import CombinedLoss
from beyondpixel.losses.cross_entropy import BinaryCrossEntropyLoss, CrossEntropyLoss
from beyondpixel.losses.cwmi import CWMILoss
from beyondpixel.losses.library import DiceLoss, FocalLoss, JaccardLoss, LovaszLoss, TverskyLoss
from beyondpixel.losses.pyramid import PyramidLoss
from beyondpixel.losses.registry import LOSSES, build_loss, loss_class
from beyondpixel.losses.rmi import RMILoss

__all__ = [
    "LOSSES",
    "AdaptiveAffinityFieldLoss",
    "AffinityFieldLoss",
    "BinaryCrossEntropyLoss",
    "CWMILoss",
    "CombinedLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "JaccardLoss",
    "LovaszLoss",
    "PyramidLoss",
    "RMILoss",
    "SegmentationLoss",
    "TverskyLoss",
    "build_loss",
    "loss_class",
]
