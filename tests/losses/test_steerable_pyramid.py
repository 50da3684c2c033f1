"""The steerable pyramid against explicit sums over frequencies and positions."""

from types import ModuleType

import numpy as np
import pytest
import torch

from beyondpixel.losses.functional.steerable_pyramid import SteerablePyramid


def subbands(pyramid: SteerablePyramid, maps: torch.Tensor) -> list[torch.Tensor]:
    """(N, C, H, W) to the subbands of each level at their positions, (N, C, K, h, w)."""
    spectra = pyramid.spectra(maps)
    filtered = [one[:, :, None] * filters for one, filters in zip(spectra, pyramid.filters(spectra[0]), strict=True)]
    positions = [torch.fft.ifft2(torch.fft.ifftshift(one, dim=(-2, -1))) for one in filtered]
    return positions if pyramid.complex else [subband.real for subband in positions]


@pytest.mark.parametrize("complex", [True, False])
@pytest.mark.parametrize(("levels", "orientations", "size"), [(1, 3, (8, 12)), (2, 4, (8, 16)), (2, 1, (12, 8))])
def test_subbands_are_the_loops(
    loop_cwmi: ModuleType, complex: bool, levels: int, orientations: int, size: tuple[int, int]
) -> None:
    image = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels_of_ours = subbands(SteerablePyramid(levels, orientations, complex), image[None, None])
    expected = loop_cwmi.loop_pyramid(image.numpy(), levels, orientations, one_sided=complex)
    assert len(levels_of_ours) == levels
    for ours, loops in zip(levels_of_ours, expected, strict=True):
        np.testing.assert_allclose(ours[0, 0].numpy(), loops, atol=1e-13)


def test_other_sizes_are_padded_with_zeros_on_the_right_and_at_the_bottom() -> None:
    pyramid = SteerablePyramid(levels=3)
    maps = torch.rand(2, 3, 21, 30)
    padded = torch.zeros(2, 3, 24, 32)
    padded[:, :, :21, :30] = maps
    for ours, expected in zip(subbands(pyramid, maps), subbands(pyramid, padded), strict=True):
        assert torch.equal(ours, expected)


def test_one_orientation_answers_to_stripes_of_its_direction() -> None:
    rows = torch.arange(64, dtype=torch.float64)
    stripes = torch.cos(2 * torch.pi * rows / 4)  # down the rows, which is where angles start
    down, sideways = stripes[:, None].expand(1, 1, 64, 64), stripes.expand(1, 1, 64, 64)
    for maps, strongest in ((down, 0), (sideways, 2)):
        (level,) = subbands(SteerablePyramid(levels=1), maps)
        assert level.abs().square().sum((3, 4))[0, 0].argmax() == strongest


@pytest.mark.parametrize("size", [(16, 64), (64, 5)])
def test_maps_too_small_are_named_with_a_remedy(size: tuple[int, int]) -> None:
    text = rf"4 levels need maps larger than 16 × 16, got {size[0]} × {size[1]}; use larger crops or fewer levels"
    with pytest.raises(ValueError, match=text):
        SteerablePyramid(levels=4).spectra(torch.zeros(1, 1, *size))


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="levels: expected a positive integer, got 0"):
        SteerablePyramid(levels=0)
    with pytest.raises(ValueError, match="orientations: expected a positive integer, got 2.5"):
        SteerablePyramid(orientations=2.5)  # type: ignore[arg-type]
