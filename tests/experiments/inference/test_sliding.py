"""Windows that cover everything, and their average against a plain count."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from beyondpixel.experiments.inference.sliding import average_windows, window_starts


@given(length=st.integers(1, 300), window=st.integers(1, 120), overlap=st.floats(0, 0.95, allow_nan=False))
def test_windows_cover_overlap_and_stay_inside(length: int, window: int, overlap: float) -> None:
    starts = window_starts(length, window, overlap)
    ends = [min(start + window, length) for start in starts]
    assert starts[0] == 0
    assert ends[-1] == length
    assert starts == sorted(set(starts))
    if length > window:
        assert all(start + window <= length for start in starts)
    for end, following in zip(ends, starts[1:], strict=False):
        assert end - following >= min(overlap * window, window - 1) - 1e-6


class Position(nn.Module):
    """Gives each pixel's distance to the window's left and top border: another value in each window."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        self.sizes.append((height, width))
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return torch.stack([y, x]).float().expand(len(images), -1, -1, -1) + images[:, :1]


def test_average_against_a_sum_pixel_by_pixel() -> None:
    images = torch.randn(2, 3, 21, 34)
    result = average_windows(Position(), images, window=12, overlap=0.5)
    tops, lefts = [0, 6, 9], [0, 6, 12, 18, 22]  # strides of 6, the last moved back to the border
    for y, x in [(0, 0), (5, 7), (6, 11), (10, 20), (11, 13), (20, 33), (17, 22), (9, 12)]:
        over = [(top, left) for top in tops for left in lefts if top <= y < top + 12 and left <= x < left + 12]
        expected = torch.tensor([sum(y - top for top, _ in over), sum(x - left for _, left in over)]) / len(over)
        torch.testing.assert_close(result[:, :, y, x], expected + images[:, :1, y, x])


def test_a_network_without_neighbourhood_sees_the_same_through_windows() -> None:
    images = torch.randn(1, 3, 40, 55)
    pixelwise = nn.Softmax(dim=1)
    torch.testing.assert_close(average_windows(pixelwise, images, window=16, overlap=0.4), pixelwise(images))


def test_a_small_image_is_seen_whole_and_a_long_one_in_one_direction() -> None:
    network = Position()
    average_windows(network, torch.zeros(1, 3, 10, 12), window=16)
    assert network.sizes == [(10, 12)]
    network.sizes.clear()
    average_windows(network, torch.zeros(1, 3, 10, 30), window=16, overlap=0.0)
    assert network.sizes == [(10, 16), (10, 16)]


@pytest.mark.parametrize(
    ("window", "overlap", "message"),
    [
        (0, 0.5, "window must be a number of pixels, 1 or more, got 0"),
        (8, 1.0, "overlap must be at least 0 and below 1, a share of the window, got 1.0"),
        (8, -0.1, "overlap must be at least 0 and below 1"),
    ],
)
def test_out_of_range(window: int, overlap: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_windows(nn.Identity(), torch.zeros(1, 3, 9, 9), window=window, overlap=overlap)
