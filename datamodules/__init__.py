"""Data sets as Lightning data modules, all with the same interface."""

from beyondpixel.datamodules.base import SegmentationDataModule
from beyondpixel.datamodules.camvid import CamVidDataModule
from beyondpixel.datamodules.folder import FolderDataModule
from beyondpixel.datamodules.shapes import ShapesDataModule
from beyondpixel.datamodules.voc import VOCDataModule

__all__ = ["CamVidDataModule", "FolderDataModule", "SegmentationDataModule", "ShapesDataModule", "VOCDataModule"]
