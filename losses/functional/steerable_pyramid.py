r"""Steerable pyramid (Simoncelli and Freeman, ICIP 1995), real and complex, in the Fourier domain.

The filters are those of the published code of CWMI (Lu, ICML 2025). Spectra are shifted so that frequency 0 is at
(H/2, W/2). The polar coordinates r and θ belong to a grid from -π + 2π/H to π by -π + 2π/W to π, which is one step
off the frequencies, and θ is measured from the row axis; both as published. With

.. math:: \mathrm{low}_c(r) = \cos(\tfrac\pi2 \, [\log_2 \tfrac rc]_0^1), \quad
    \mathrm{high}(r) = \cos(\tfrac\pi2 \, [\log_2 \tfrac{2r}\pi]_{-1}^0)

([x] clamped to the range), the spectrum is first multiplied by low at c = π/2. Each level has K oriented subbands

.. math:: \mathrm{high}(r) \cdot \alpha_K |\cos(\theta - \tfrac{\pi k}K)|^{K-1},
    \quad \alpha_K = \frac{2^{K-1} (K-1)!}{\sqrt{K (2K-2)!}}

or, in the complex pyramid, twice the half of each with a positive cosine. The next level gets the spectrum times
low at c = π/4, cropped to its middle half.

**Any size**: maps are padded with zeros on the right and at the bottom to the next multiples of 2^levels, as if the
pixels there were void. For sizes that are such multiples, the results are those of the published code.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses.functional.arguments import check_positive_int


@dataclass(frozen=True)
class SteerablePyramid:
    """Oriented subbands of maps, as the products of spectra and filters.

    Args:
        levels: number of scales, each half the size of the one before.
        orientations: K.
        complex: whether the filters are one-sided, which gives a subband and its quadrature pair in one.

    Raises:
        ValueError: if a number is not a positive integer.

    >>> pyramid = SteerablePyramid(levels=2)
    >>> spectra = pyramid.spectra(torch.zeros(2, 3, 60, 100))
    >>> [tuple(spectrum.shape) for spectrum in spectra], [tuple(one.shape) for one in pyramid.filters(spectra[0])]
    ([(2, 3, 60, 100), (2, 3, 30, 50)], [(4, 60, 100), (4, 30, 50)])
    """

    levels: int = 4
    orientations: int = 4
    complex: bool = True

    def __post_init__(self) -> None:
        check_positive_int("levels", self.levels)
        check_positive_int("orientations", self.orientations)

    def spectra(self, maps: Tensor) -> list[Tensor]:
        """Compute the unfiltered spectrum of each level i: (N, C, H, W) to (N, C, H' / 2^i, W' / 2^i) complex128.

        Raises:
            ValueError: if a side is not above 2^levels, or the coarsest level has fewer than 3 K positions (real: 4 K).
        """
        height, width = maps.shape[-2:]
        step = 2**self.levels
        if min(height, width) <= step:
            # the coarsest level would have fewer than 4 × 4 positions, fewer than the subbands compared over them
            raise ValueError(
                f"levels: {self.levels} levels need maps larger than {step} × {step}, got {height} × {width}; "
                "use larger crops or fewer levels"
            )
        padded_size = tuple(-(-side // step) * step for side in (height, width))
        self._check_positions(*(side // 2 ** (self.levels - 1) for side in padded_size))
        padded = F.pad(maps.double(), (0, padded_size[1] - width, 0, padded_size[0] - height))
        spectra = [torch.fft.fftshift(torch.fft.fft2(padded), dim=(-2, -1))]
        while len(spectra) < self.levels:
            spectra.append(_middle_half(spectra[-1]))
        return spectra

    def _check_positions(self, height: int, width: int) -> None:
        """Raise a ValueError for so few positions that K subbands of noise would explain K of the labels."""
        # a real map of n positions has about n / 2 frequencies; K of them are fitted, and M needs K more. On 4 × 4 to
        # 8 × 8 positions, noise needs jitter from about K = n / 4 on, and from n / 3 on in the complex pyramid
        needed = (3 if self.complex else 4) * self.orientations
        if height * width < needed:
            raise ValueError(
                f"levels: the coarsest of {self.levels} levels has {height} × {width} positions, but "
                f"{self.orientations} orientations need at least {needed}; use larger crops, fewer levels or fewer "
                "orientations"
            )

    def filters(self, spectrum: Tensor) -> list[Tensor]:
        """Compute the filters of each level i, (K, H' / 2^i, W' / 2^i) float64, for the finest of the spectra."""
        degree = self.orientations - 1
        # one quotient of integers, since each of its factors is too large for a float from K = 86 on
        squared_scale = 4**degree * math.factorial(degree) ** 2 / (self.orientations * math.factorial(2 * degree))
        scale = math.sqrt(squared_scale)
        numbers = torch.arange(self.orientations, dtype=torch.float64, device=spectrum.device)
        axes = numbers[:, None, None] * (math.pi / self.orientations)
        radius, angle = _polar_grid(spectrum)
        kept = _low_pass(radius, math.pi / 2)
        filters = []
        for _ in range(self.levels):
            radius, angle = _polar_grid(kept)
            cosine = torch.cos(angle - axes)
            oriented = 2 * cosine.clamp_min(0) ** degree if self.complex else cosine.abs() ** degree
            high_pass = torch.cos(torch.log2(radius / (math.pi / 2)).clamp(-1, 0) * (math.pi / 2))
            filters.append(scale * oriented * high_pass * kept)
            kept = _middle_half(kept * _low_pass(radius, math.pi / 4))
        return filters


def _polar_grid(spectrum: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = (
        (torch.arange(side, dtype=torch.float64, device=spectrum.device) + 1 - side // 2) * (2 * math.pi / side)
        for side in spectrum.shape[-2:]
    )
    return torch.hypot(rows[:, None], columns), torch.atan2(columns, rows[:, None])


def _low_pass(radius: Tensor, cutoff: float) -> Tensor:
    return torch.cos(torch.log2(radius / cutoff).clamp(0, 1) * (math.pi / 2))


def _middle_half(spectrum: Tensor) -> Tensor:
    height, width = spectrum.shape[-2:]
    return spectrum[..., height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
