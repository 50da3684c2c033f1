"""The plain way of updating MCIBI's memory, and batches to update it with."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from beyondpixel.lightning_modules.networks import FeatureGrid, context_network


@pytest.fixture(scope="session")
def direct_memory(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """The authors' way, at full size."""
    return load_file(Path(__file__).with_name("direct_memory.py"))


@pytest.fixture
def labeled_features() -> Callable[..., tuple[Tensor, Tensor]]:
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


@pytest.fixture
def fake_encoder(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """Gives every context network an encoder that has channels but no layers, with features of areas at stride 8."""

    def fake(channels: list[int]) -> None:
        encoder = nn.Module()
        encoder.out_channels = channels  # type: ignore[assignment]
        built = (encoder, FeatureGrid(stride=8, align_corners=False))
        monkeypatch.setattr(context_network, "build_encoder", lambda *_, **__: built)

    return fake


@pytest.fixture(scope="session")
def rule_weights() -> Callable[[int, list[Any]], dict[str, Tensor]]:
    """Weights of the reference arrays: drawn from the seed and the index of each name."""

    def make(seed: int, keys: list[Any]) -> dict[str, Tensor]:
        return {name: _draw(np.random.default_rng([seed, index]), name, shape) for index, name, shape in keys}

    return make


def _draw(random: np.random.Generator, name: str, shape: list[int]) -> Tensor:
    if name.endswith("running_var"):
        drawn = 0.5 + 1.5 * random.random(shape)
    elif name.endswith("weight") and len(shape) == 4:
        drawn = random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    elif name.endswith("weight"):
        drawn = (0.5 + 0.7 * random.random(shape)) * (0.3 if ".bn3." in name else 1.0)
    else:
        drawn = 0.1 * random.standard_normal(shape)
    return torch.from_numpy(drawn.astype(np.float32))
