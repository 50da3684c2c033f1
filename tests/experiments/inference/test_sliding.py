"""Crops that cover everything, and their average against a plain count."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from beyondpixel.experiments.inference.sliding import SlidingWindow


@given(length=st.integers(1, 300), window=st.integers(1, 120), overlap=st.floats(0, 0.95, allow_nan=False))
def test_crops_cover_overlap_and_stay_inside(length: int, window: int, overlap: float) -> None:
    starts = SlidingWindow(window, overlap).starts(length)
    ends = [min(start + window, length) for start in starts]
    assert starts[0] == 0
    assert ends[-1] == length
    assert starts == sorted(set(starts))
    if length > window:
        assert all(start + window <= length for start in starts)
    for end, following in zip(ends, starts[1:], strict=False):
        assert end - following >= min(overlap * window, window - 1) - 1e-6


def test_a_stride_is_not_rounded_down_for_a_rounding_error() -> None:
    assert SlidingWindow(100, overlap=0.9).starts(120) == [0, 10, 20]  # 100 * (1 - 0.9) is 9.999999999999998


class Position(nn.Module):
    """Logits whose softmax tells each pixel's distance to the crop's top border: another value in each crop."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        self.sizes.append((height, width))
        share = self.share(torch.arange(height)[:, None] + torch.arange(width), images)
        return torch.stack([share, 1 - share], dim=1).log()

    @staticmethod
    def share(distance: Tensor, images: Tensor) -> Tensor:
        return (0.1 + 0.01 * distance + 0.001 * images[:, 0]).clamp(0.01, 0.99)


def test_average_against_a_sum_pixel_by_pixel() -> None:
    images = torch.randn(2, 3, 21, 34)
    result = SlidingWindow(12, overlap=0.5)(images, Position()).exp()
    tops, lefts = [0, 6, 9], [0, 6, 12, 18, 22]  # strides of 6, the last moved back to the border
    for y, x in [(0, 0), (5, 7), (6, 11), (10, 20), (11, 13), (20, 33), (17, 22), (9, 12)]:
        over = [(top, left) for top in tops for left in lefts if top <= y < top + 12 and left <= x < left + 12]
        pixel = images[:, :, y, x]
        shares = [Position.share(torch.tensor(y - top + x - left), pixel) for top, left in over]
        torch.testing.assert_close(result[:, 0, y, x], torch.stack(shares).mean(0))


def test_a_network_without_neighborhood_gives_the_same_in_crops() -> None:
    images = torch.randn(1, 3, 40, 55)
    logits = SlidingWindow(16, overlap=0.4)(images, nn.Identity())
    torch.testing.assert_close(logits.softmax(1), images.softmax(1))


def test_a_small_image_is_seen_whole_and_a_long_one_in_one_direction() -> None:
    network = Position()
    SlidingWindow(16)(torch.zeros(1, 3, 10, 12), network)
    assert network.sizes == [(10, 12)]
    network.sizes.clear()
    SlidingWindow(16, overlap=0.0)(torch.zeros(1, 3, 10, 30), network)
    assert network.sizes == [(10, 16), (10, 16)]


@pytest.mark.parametrize(
    ("window", "overlap", "message"),
    [
        (0, 0.5, "size must be a number of pixels, 1 to 65535, got 0"),
        (8, 1.0, "overlap must be at least 0 and below 1, a share of the crop, got 1.0"),
        (8, -0.1, "overlap must be at least 0 and below 1"),
    ],
)
def test_out_of_range(window: int, overlap: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlidingWindow(window, overlap)
