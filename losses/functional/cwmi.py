r"""The complex wavelet mutual information of labels and probabilities (Lu, ICML 2025).

With Y and P the subbands of labels and probabilities on one level of a steerable pyramid (dimensions × positions,
centered), S_Y = Y Yᵀ, S_P = P Pᵀ, C = Y Pᵀ and the ridge ξ, the loss is a sum of log det M, with

.. math:: M = S_Y - C (S_P + \xi I)^{-1} C^T

The dimensions are the K orientations, or, for complex subbands z, 2K: the matrix [Re z, -Im z; Im z, Re z] has twice
the positions, and its log det is halved, as each dimension counts twice.

The subbands are never computed: by Parseval's theorem, products summed over positions are products of spectra summed
over frequencies, weighted by the filters. That takes one Fourier transform per map instead of one per subband.
"""

import torch
from torch import Tensor

from beyondpixel.losses.functional.arguments import check_ridge
from beyondpixel.losses.functional.log_det import half_log_det
from beyondpixel.losses.functional.steerable_pyramid import SteerablePyramid
from beyondpixel.losses.functional.target import multi_hot, read_target, valid_mask, without_autocast

# fraction of a label map's energy, below which a pivot of M is a rounding error: float64 has 2⁻⁵³
_ROUNDING = 2.0**-44


def cwmi_log_det(
    probs: Tensor,
    target: Tensor,
    *,
    levels: int = 4,
    orientations: int = 4,
    complex: bool = True,
    ridge: float = 5e-4,
    ignore_index: int = 255,
) -> Tensor:
    r"""Compute log det M of each level, image and class: the labels' subbands unexplained by the probabilities.

    Void pixels are 0 in both maps and get no gradient. In a map without a pixel of a class, M is 0; then, and whenever
    M is not positive definite beyond rounding errors, ξ is added to it (2⁻²⁴ of its largest diagonal entry if that is
    more), so that the value is finite.

    Args:
        probs: (N, C, H, W) floating point in [0, 1], H and W above 2^levels.
        target: (N, H, W) integer labels, or (N, C, H, W) multi-hot of 0 and 1.
        levels: number of pyramid levels; sizes that are not multiples of 2^levels are padded (see `steerable_pyramid`).
        orientations: K, subbands per level.
        complex: whether the pyramid is complex.
        ridge: ξ > 0.
        ignore_index: label of the void pixels.

    Returns:
        (levels, N, C) float64.

    Raises:
        TypeError: if preds are not floating point, or labels not integer.
        ValueError: if an argument or a value is out of range, shapes do not fit, or maps are too small for the levels.

    >>> target = torch.zeros(1, 32, 32, dtype=torch.long)
    >>> target[:, 8:20, 8:20] = 1
    >>> noise = torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> close = torch.nn.functional.one_hot(target, 2).movedim(-1, 1) * 0.9 + 0.1 * noise
    >>> bool((cwmi_log_det(close, target, levels=2) < cwmi_log_det(noise, target, levels=2)).all())
    True
    """
    pyramid = SteerablePyramid(levels, orientations, complex)
    check_ridge(ridge)
    with without_autocast(probs, target):
        labels = read_target(probs, target, ignore_index=ignore_index, with_logits=False)
        return log_det(probs, labels, pyramid, ridge)[0]


def log_det(probs: Tensor, target: Tensor, pyramid: SteerablePyramid, ridge: float) -> tuple[Tensor, Tensor]:
    """Compute `cwmi_log_det` for a target from `read_target`, and count matrices that needed an unpublished ridge."""
    if len(probs) == 0:  # FFT libraries reject empty batches
        empty = probs.new_zeros(pyramid.levels, 0, probs.shape[1], dtype=torch.float64)
        return empty + probs.double().sum(), torch.zeros((), dtype=torch.int64, device=probs.device)
    labels = multi_hot(target, probs.shape[1], torch.float64)
    label_spectra = pyramid.spectra(labels)
    prob_spectra = pyramid.spectra(torch.where(valid_mask(target)[:, None], probs, 0))
    moments = []
    for y, p, filters in zip(label_spectra, prob_spectra, pyramid.filters(label_spectra[0]), strict=True):
        weights = _MomentWeights(filters, pyramid.complex)
        cross = weights.moments(p, y)
        above, below = torch.cat([weights.moments(y, y), cross.mT], -1), torch.cat([cross, weights.moments(p, p)], -1)
        moments.append(torch.cat([above, below], -2))
    # the energy of a map is its number of pixels; a coarser level has it in a quarter of the positions
    growth = 4.0 ** torch.arange(pyramid.levels, dtype=torch.float64, device=probs.device)
    rounding = _ROUNDING * growth[:, None, None] * labels.sum((2, 3))
    value, jittered = half_log_det(torch.stack(moments), ridge, residual_ridge=0.0, rounding=rounding)
    return value if pyramid.complex else 2 * value, jittered


class _MomentWeights:
    """Weights that convert sums over the frequencies of a level to sums over its positions.

    Args:
        filters: filters of the level, (K, h, w).
        complex: whether the subbands are complex or only their real part is used.
    """

    def __init__(self, filters: Tensor, complex: bool) -> None:
        height, width = filters.shape[1:]
        self.positions = height * width
        self.complex = complex
        self.mean_filter = filters[:, height // 2, width // 2]
        # without frequency 0 the subbands have mean 0
        self.filters = filters.clone()
        self.filters[:, height // 2, width // 2] = 0

    def moments(self, first: Tensor, second: Tensor) -> Tensor:
        """Sum the products of all centered subbands over the positions: spectra (N, C, h, w) to (N, C, D, D)."""
        in_phase = first.real * second.real + first.imag * second.imag
        if not self.complex:
            # Re a · Re b = Re(a b* + a b) / 2, and the spectrum of b* is that of b at the opposite frequencies
            opposite = _opposite(second)
            summed = self._sum(in_phase, self.filters)
            mirrored = first.real * opposite.real - first.imag * opposite.imag
            return (summed + self._sum(mirrored, _opposite(self.filters))) / 2
        real = self._sum(in_phase, self.filters)
        if first is second:
            imag = torch.zeros_like(real)
        else:
            imag = self._sum(first.imag * second.real - first.real * second.imag, self.filters)
        # published: [Re z, -Im z; Im z, Re z] is centered by the means of its rows, half the mean of Re z each
        height, width = first.shape[-2:]
        center = (..., height // 2, width // 2)
        mean = (first[center].real * second[center].real)[..., None, None] * torch.outer(
            self.mean_filter, self.mean_filter
        )
        mean = mean / (2 * self.positions)
        above = torch.cat([real + mean, -imag - mean], -1)
        below = torch.cat([imag - mean, real + mean], -1)
        return torch.cat([above, below], -2)

    def _sum(self, products: Tensor, filters: Tensor) -> Tensor:
        """Sum products (N, C, h, w) to (N, C, K, K), weighted by each of `self.filters` times each of `filters`."""
        pairs = self.filters[:, None] * filters / self.positions
        weighted = products.flatten(2) @ pairs.flatten(2).flatten(0, 1).mT
        return weighted.reshape(*products.shape[:2], *pairs.shape[:2])


def _opposite(spectrum: Tensor) -> Tensor:
    """Return a shifted spectrum at the negated frequencies."""
    return spectrum.flip((-2, -1)).roll((1, 1), (-2, -1))
