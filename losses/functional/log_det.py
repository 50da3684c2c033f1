r"""Log determinant of the residual of a linear estimate, shared by RMI and CWMI.

With S_Y, C and S_P the blocks of the second moments of labels Y and probabilities P, d × d each, and a ridge ξ,

.. math:: M = S_Y - C (S_P + \xi I)^{-1} C^T

is the moment matrix of the residual when Y is estimated linearly from P.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override


def half_log_det(
    moments: Tensor, ridge: float, *, residual_ridge: float, rounding: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute ½ log det (M + ρ I), with its gradient in closed form.

    With A = S_P + ξ I = F Fᵀ and B = F⁻¹ Cᵀ,

        M + ρ I = S_Y - Bᵀ B + ρ I = L Lᵀ,    ½ log det (M + ρ I) = Σ log L_ii,

    which needs no inverse and keeps M symmetric. Differentiating with W = C A⁻¹ gives for the moments

        ∂/∂[S_Y C; Cᵀ S_P] = Vᵀ V / 2,    V = L⁻¹ [I, -W].

    Args:
        moments: (..., 2d, 2d) float64 symmetric.
        ridge: ξ > 0.
        residual_ridge: ρ ≥ 0.
        rounding: (...), a pivot of M + ρ I that is not above it is considered a rounding error.

    Returns:
        The values (...), and the number of matrices that needed more than their ridge, an int64 scalar.
    """
    with torch.no_grad():
        value, jittered, gradient = _solve(moments, ridge, residual_ridge, rounding, moments.requires_grad)
    if gradient is not None:
        value = _HalfLogDet.apply(moments, value, gradient, (ridge, residual_ridge, rounding))
    return value, jittered


def _solve(
    moments: Tensor, ridge: float, residual_ridge: float, rounding: Tensor | float, with_gradient: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the values, the number of matrices that needed more than their ridge, and the gradient in the moments."""
    side = moments.shape[-1] // 2
    upper, of_probs = moments[..., :side, :], moments[..., side:, side:]
    of_labels, cross = upper[..., :side], upper[..., side:]
    factor, jittered = stable_cholesky(of_probs, ridge, jitter=ridge)
    half = torch.linalg.solve_triangular(factor, cross.mT, upper=False)
    residual = of_labels - half.mT @ half
    residual_factor, residual_jittered = stable_cholesky(residual, residual_ridge, jitter=ridge, rounding=rounding)
    value = residual_factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    if not with_gradient:
        return value, jittered + residual_jittered, None
    weights = torch.linalg.solve_triangular(factor.mT, half, upper=True).mT  # W
    eye = torch.eye(side, dtype=moments.dtype, device=moments.device).expand_as(weights)
    root = torch.linalg.solve_triangular(residual_factor, torch.cat([eye, -weights], -1), upper=False)
    return value, jittered + residual_jittered, root.mT @ root / 2


class _HalfLogDet(torch.autograd.Function):
    """The values with their gradient: autograd's, through two Cholesky factors, would lose precision."""

    generate_vmap_rule = True

    @staticmethod
    @override
    def forward(moments: Tensor, value: Tensor, gradient: Tensor, options: tuple[Any, ...]) -> Tensor:
        return value.clone()

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        moments, _, gradient, ctx.options = inputs
        ctx.save_for_backward(moments, gradient)

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        moments, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            _, _, gradient = _solve(moments, *ctx.options)
        return grad[..., None, None] * gradient, None, None, None


def stable_cholesky(
    matrix: Tensor, ridge: float, *, jitter: float, rounding: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cholesky factorization that never raises and has no data-dependent branch: it works in graphs and on streams.

    A matrix that is not positive definite with the ridge gets another 2⁻²⁴ of its largest diagonal entry (at least
    `jitter`), which exceeds the rounding of its float64 entries; if that fails, too, it is replaced by its largest
    diagonal entry times the identity.

    Args:
        matrix: (..., d, d) symmetric float64.
        ridge: at least 0, always added to the diagonal.
        jitter: above 0, the minimum that is added where the ridge is not enough.
        rounding: (...), a pivot that is not above it counts as failed.

    Returns:
        The lower factors (..., d, d), NaN where the matrix is not finite, and the number of finite matrices for which
        the ridge was not enough, an int64 scalar.
    """
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    largest = matrix.diagonal(dim1=-2, dim2=-1).abs().amax(-1)[..., None, None]
    extra = (largest * 2**-24).clamp_min(jitter)
    shifted = matrix + ridge * eye
    # cholesky would raise and end the run, and may return wrong values without an error if compiled
    factor, info = torch.linalg.cholesky_ex(shifted)
    second, second_info = torch.linalg.cholesky_ex(shifted + extra * eye)
    fallback = (largest + extra).sqrt() * eye
    pivots = factor.diagonal(dim1=-2, dim2=-1).amin(-1).square()
    failed = ((info > 0) | ~(pivots > rounding))[..., None, None]
    factor = torch.where(failed, torch.where((second_info > 0)[..., None, None], fallback, second), factor)
    finite = shifted.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    return torch.where(finite, factor, torch.nan), (failed & finite).sum()
