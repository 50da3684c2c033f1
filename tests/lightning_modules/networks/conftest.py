"""The plain way of updating MCIBI's memory, and batches to update it with."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def direct_memory() -> ModuleType:
    """The authors' way, at full size."""
    # with import mode importlib, a test cannot import the file beside it
    name = "direct_memory"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def labelled_features() -> Callable[..., tuple[Tensor, Tensor]]:
    """Features (N, C, h, w) in float64, all with something in common, and labels with void and one lonely pixel."""

    def make(
        size: tuple[int, int], image_size: tuple[int, int], *, num_classes: int, channels: int = 6, images: int = 2
    ) -> tuple[Tensor, Tensor]:
        features = torch.randn(images, channels, *size, dtype=torch.float64)
        features += torch.randn(channels, 1, 1, dtype=torch.float64)
        target = torch.randint(num_classes - 1, (images, *image_size))
        target[torch.rand(target.shape) < 0.2] = 255
        target[-1, -1, -1] = num_classes - 1
        return features, target

    return make
