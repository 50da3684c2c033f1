"""Lightning modules for semantic segmentation.

Imported on first use, so that networks and metrics can be used without PyTorch Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beyondpixel.lightning_modules.base import SegmentationModule
    from beyondpixel.lightning_modules.deeplab import DeepLabModule
    from beyondpixel.lightning_modules.mcibi import MCIBIModule

__all__ = ["DeepLabModule", "MCIBIModule", "SegmentationModule"]
_FILES = {"SegmentationModule": "base", "DeepLabModule": "deeplab", "MCIBIModule": "mcibi"}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("beyondpixel"):
            raise
        raise ImportError(f"{name} needs the package {error.name}; try: pip install 'beyondpixel[train]'") from error
