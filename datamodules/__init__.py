"""Data sets as Lightning data modules, all with the same interface."""

from beyondpixel.datamodules.base import SegmentationDataModule
from beyondpixel.datamodules.camvid import CamVidDataModule
from beyondpixel.datamodules.shapes import ShapesDataModule

__all__ = ["CamVidDataModule", "SegmentationDataModule", "ShapesDataModule"]
