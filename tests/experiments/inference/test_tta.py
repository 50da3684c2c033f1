"""Averages over passes, against passes made by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beyondpixel.experiments.inference.tta import TestTimeAugmentation


@pytest.fixture
def network() -> nn.Module:
    """Sees its neighborhood, and left and right differently."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).eval()


IMAGES = torch.randn(2, 3, 17, 23, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_one_pass_is_the_network_itself(network: nn.Module) -> None:
    torch.testing.assert_close(TestTimeAugmentation()(IMAGES, network).softmax(1), network(IMAGES).softmax(1))


@torch.no_grad()
def test_scales_and_flips_against_passes_made_by_hand(network: nn.Module) -> None:
    def shrunk(images: Tensor) -> Tensor:
        return F.interpolate(images, size=(8, 12), mode="bilinear", align_corners=False, antialias=True)

    def enlarged(images: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False)

    def probs(images: Tensor) -> Tensor:
        logits: Tensor = network(images)
        return logits.softmax(1)

    passes = [probs(IMAGES)]
    passes.append(torch.flip(probs(torch.flip(IMAGES, [3])), [3]))
    passes.append(enlarged(probs(shrunk(IMAGES)), (17, 23)))  # 17 and 23 halved are 8.5 and 11.5: even numbers
    passes.append(enlarged(torch.flip(probs(torch.flip(shrunk(IMAGES), [3])), [3]), (17, 23)))
    passes.append(enlarged(probs(enlarged(IMAGES, (34, 46))), (17, 23)))
    passes.append(enlarged(torch.flip(probs(torch.flip(enlarged(IMAGES, (34, 46)), [3])), [3]), (17, 23)))
    expected = torch.stack(passes).mean(0)
    averaged = TestTimeAugmentation((1, 0.5, 2), flip=True)(IMAGES, network).exp()
    torch.testing.assert_close(averaged, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(averaged.sum(1), torch.ones(2, 17, 23))
    assert (averaged - probs(IMAGES)).abs().max() > 0.01  # the passes do differ


@torch.no_grad()
def test_with_flip_a_mirrored_image_gives_the_mirrored_result(network: nn.Module) -> None:
    tta = TestTimeAugmentation((0.75, 1.25), flip=True)
    mirrored = tta(IMAGES.flip(-1), network).flip(-1)
    torch.testing.assert_close(mirrored.softmax(1), tta(IMAGES, network).softmax(1), rtol=0, atol=1e-6)


@torch.no_grad()
def test_an_image_of_one_color_is_the_same_at_all_scales() -> None:
    even = torch.full((1, 3, 9, 14), 0.3)
    factors = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    averaged = TestTimeAugmentation((0.3, 1.7))(even, lambda images: images * factors)
    torch.testing.assert_close(averaged.softmax(1), (even * factors).softmax(1))


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((), "scales must be one or more distinct factors, got none"),
        ((1.0, 1.0), "scales must be one or more distinct factors, got 1,1"),
        ((1.0, 1e9), r"scales must be in 0.1..4, .* \(4 takes 16 times that of the image\), got 1,1e\+09"),
        ((0.0,), "scales must be in 0.1..4"),
        ((float("nan"),), "scales must be in 0.1..4"),
    ],
)
def test_scales_out_of_range(scales: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TestTimeAugmentation(scales)


def test_pixels_do_not_vanish_at_small_scales() -> None:
    seen: list[tuple[int, ...]] = []

    def network(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape[2:]))
        return images

    logits = TestTimeAugmentation((0.1, 1.0))(torch.zeros(1, 3, 1, 2), network)
    assert seen == [(1, 1), (1, 2)]
    assert logits.shape == (1, 3, 1, 2)
