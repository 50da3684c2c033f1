"""The plain way of updating MCIBI's memory, and batches to update it with."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def direct_memory(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """The authors' way, at full size."""
    return load_file(Path(__file__).with_name("direct_memory.py"))


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
