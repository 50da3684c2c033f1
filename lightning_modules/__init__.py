"""Lightning modules for semantic segmentation."""

from beyondpixel.lightning_modules.base import SegmentationModule
from beyondpixel.lightning_modules.deeplab import DeepLabModule

__all__ = ["DeepLabModule", "SegmentationModule"]
