"""Lightning modules for semantic segmentation."""

from beyondpixel.lightning_modules.base import SegmentationModule
from beyondpixel.lightning_modules.deeplab import DeepLabModule
from beyondpixel.lightning_modules.mcibi import MCIBIModule

__all__ = ["DeepLabModule", "MCIBIModule", "SegmentationModule"]
