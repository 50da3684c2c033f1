"""Independent implementations, and made-up pictures, for the tests of the losses."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def loop_rmi(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """Eq. 12-16 in float64 loops."""
    return load_file(HERE / "loop_rmi.py")


@pytest.fixture(scope="session")
def plain_rmi(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """The authors' way in plain PyTorch."""
    return load_file(HERE / "plain_rmi.py")


@pytest.fixture(scope="session")
def loop_losses(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """The other losses in float64 loops."""
    return load_file(HERE / "loop_losses.py")


@pytest.fixture(scope="session")
def loop_cwmi(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """CWMI's subbands and log determinant in float64 loops."""
    return load_file(HERE / "loop_cwmi.py")


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
