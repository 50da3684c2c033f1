"""Data sets as Lightning data modules with one interface, imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beyondpixel.datamodules.base import SegmentationDataModule
    from beyondpixel.datamodules.camvid import CamVidDataModule
    from beyondpixel.datamodules.folder import FolderDataModule
    from beyondpixel.datamodules.shapes import ShapesDataModule
    from beyondpixel.datamodules.voc import VOCDataModule

__all__ = ["CamVidDataModule", "FolderDataModule", "SegmentationDataModule", "ShapesDataModule", "VOCDataModule"]
_FILES = {
    "CamVidDataModule": "camvid",
    "FolderDataModule": "folder",
    "SegmentationDataModule": "base",
    "ShapesDataModule": "shapes",
    "VOCDataModule": "voc",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
