"""Averages over views, against views made by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beyondpixel.experiments.inference.tta import average_views


@pytest.fixture
def network() -> nn.Module:
    """Sees its neighbourhood, and left and right differently."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.Softmax(1)).eval()


IMAGES = torch.randn(2, 3, 17, 23, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_one_view_is_the_network_itself(network: nn.Module) -> None:
    assert torch.equal(average_views(network, IMAGES), network(IMAGES))


@torch.no_grad()
def test_scales_and_flips_against_views_made_by_hand(network: nn.Module) -> None:
    def shrunk(images: Tensor) -> Tensor:
        return F.interpolate(images, size=(8, 12), mode="bilinear", align_corners=False, antialias=True)

    def enlarged(images: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False)

    views = [network(IMAGES)]
    views.append(torch.flip(network(torch.flip(IMAGES, [3])), [3]))
    views.append(enlarged(network(shrunk(IMAGES)), (17, 23)))  # 17 and 23 halved are 8.5 and 11.5: even numbers
    views.append(enlarged(torch.flip(network(torch.flip(shrunk(IMAGES), [3])), [3]), (17, 23)))
    views.append(enlarged(network(enlarged(IMAGES, (34, 46))), (17, 23)))
    views.append(enlarged(torch.flip(network(torch.flip(enlarged(IMAGES, (34, 46)), [3])), [3]), (17, 23)))
    expected = torch.stack(views).mean(0)
    averaged = average_views(network, IMAGES, scales=(1, 0.5, 2), flip=True)
    torch.testing.assert_close(averaged, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(averaged.sum(1), torch.ones(2, 17, 23))
    assert (averaged - network(IMAGES)).abs().max() > 0.01  # the views do differ


@torch.no_grad()
def test_with_flip_a_mirrored_image_gives_the_mirrored_result(network: nn.Module) -> None:
    probs = average_views(network, IMAGES, scales=(0.75, 1.25), flip=True)
    mirrored = average_views(network, IMAGES.flip(-1), scales=(0.75, 1.25), flip=True)
    torch.testing.assert_close(mirrored.flip(-1), probs, rtol=0, atol=1e-6)


@torch.no_grad()
def test_an_image_of_one_colour_is_the_same_at_all_scales() -> None:
    even = torch.full((1, 3, 9, 14), 0.3)
    averaged = average_views(lambda images: images.sigmoid(), even, scales=(0.3, 1.7))
    torch.testing.assert_close(averaged, even.sigmoid())


def test_no_scale() -> None:
    with pytest.raises(ValueError, match="scales must hold one factor or more, got none"):
        average_views(nn.Identity(), IMAGES, scales=())
