import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.lightning_modules.networks.bilinear import BilinearUpsampling

CPU = torch.device("cpu")
SIZES = [
    ((4, 6), (32, 48)),
    ((5, 7), (33, 47)),
    ((3, 4), (3, 4)),
    ((1, 1), (5, 9)),
    ((1, 6), (8, 6)),
    ((9, 8), (4, 3)),
    ((65, 3), (513, 20)),
]


def upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize(("size", "image_size"), SIZES)
def test_pixels_read_what_interpolation_makes(size: tuple[int, int], image_size: tuple[int, int]) -> None:
    maps = torch.randn(3, *size, dtype=torch.float64)
    which = torch.randint(3, image_size)
    upsampling = BilinearUpsampling(size, image_size, CPU)
    values = upsampling.interpolate(upsampling.coefficients(maps), which * size[0] * size[1] + upsampling.cell)
    expected = upsampled(maps, image_size).gather(0, which[None])[0]
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "image_size"), SIZES)
@pytest.mark.parametrize("weighted", [True, False])
def test_pulling_back_is_autograds_transpose(
    size: tuple[int, int], image_size: tuple[int, int], weighted: bool
) -> None:
    maps = torch.zeros(3, *size, dtype=torch.float64, requires_grad=True)
    which = torch.randint(3, image_size)
    weights = torch.rand(image_size, dtype=torch.float64) if weighted else None
    read = upsampled(maps, image_size).gather(0, which[None])[0]
    (read * (1 if weights is None else weights)).sum().backward()
    upsampling = BilinearUpsampling(size, image_size, CPU)
    shares = upsampling.pull_back(weights, which * size[0] * size[1] + upsampling.cell, 3)
    torch.testing.assert_close(shares, maps.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "image_size"), SIZES)
def test_squared_norms_of_upsampled_features(size: tuple[int, int], image_size: tuple[int, int]) -> None:
    features = torch.randn(5, *size, dtype=torch.float64)
    norms = BilinearUpsampling(size, image_size, CPU).squared_norms([features[:2], features[2:]])
    torch.testing.assert_close(norms, upsampled(features, image_size).square().sum(0), rtol=0, atol=1e-12)


def test_norms_of_features_that_cancel_are_not_negative() -> None:
    features = torch.randn(5, 1, 1, dtype=torch.float64) * torch.tensor([1.0, -1.0])
    # the middle pixel of three lies half-way between a feature and its opposite
    norms = BilinearUpsampling((1, 2), (1, 3), CPU).squared_norms([features])
    assert 0 <= norms[0, 1] < 1e-14
