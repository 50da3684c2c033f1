"""Independent implementations, and made-up pictures, for the tests of the losses."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    # with import mode importlib, a test cannot import the file beside it
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def loop_rmi() -> ModuleType:
    """Eq. 12-16 in float64 loops."""
    return _load("loop_rmi")


@pytest.fixture(scope="session")
def plain_rmi() -> ModuleType:
    """The authors' way in plain PyTorch."""
    return _load("plain_rmi")


@pytest.fixture(scope="session")
def loop_losses() -> ModuleType:
    """The other losses in float64 loops."""
    return _load("loop_losses")


@pytest.fixture
def batch() -> Callable[..., tuple[Tensor, Tensor]]:
    """Makes logits (N, C, H, W) and blocky labels (N, H, W), a tenth of the pixels void if asked."""

    def make(
        size: int = 2,
        num_classes: int = 3,
        height: int = 20,
        width: int = 23,
        *,
        void: bool = True,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randint(num_classes, (size, -(-height // 4), -(-width // 4)), generator=generator)
        labels = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :height, :width].clone()
        noise = torch.randn(size, num_classes, height, width, generator=generator, dtype=torch.float64)
        logits = noise + 2 * torch.nn.functional.one_hot(labels, num_classes).movedim(-1, 1)
        if void:
            labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
        return logits.to(dtype), labels

    return make
