"""Data sets as Lightning data modules, all with the same interface."""

from beyondpixel.datamodules.base import SegmentationDataModule
from beyondpixel.datamodules.camvid import CamVidDataModule
from beyondpixel.datamodules.folder import FolderDataModule
from beyondpixel.datamodules.shapes import ShapesDataModule
from beyondpixel.datamodules.voc import VOCDataModule

# by the name that the command line knows them by
DATA_MODULES: dict[str, type[SegmentationDataModule]] = {
    "camvid": CamVidDataModule,
    "folder": FolderDataModule,
    "shapes": ShapesDataModule,
    "voc": VOCDataModule,
}

__all__ = [
    "DATA_MODULES",
    "CamVidDataModule",
    "FolderDataModule",
    "SegmentationDataModule",
    "ShapesDataModule",
    "VOCDataModule",
]
