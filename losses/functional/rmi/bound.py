"""The lower bound of region mutual information, Eq. 9-16 of Zhao et al., NeurIPS 2019, from second moments.

With Y and P the centred label and probability regions (d × n), S_Y = Y Yᵀ, S_P = P Pᵀ, C = Y Pᵀ (divided by n in the
paper, not in the authors' code) and the ridge ξ,

    A = S_P + ξ I,    M = S_Y - C A⁻¹ Cᵀ + ξ I,    I_l = -log det M / (2 d).

With W = C A⁻¹ and K = M⁻¹, differentiating log det M gives, for the matrix P itself,

    ∂I_l/∂P = (Wᵀ K Y - Wᵀ K W P) / d,

so the backward pass needs two d × d matrices for each image and class, and the pooled maps.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from beyondpixel.losses.functional.rmi.cholesky import stable_cholesky
from beyondpixel.losses.functional.rmi.compiled import (
    compiled_bound,
    compiled_moments_backward,
    compiled_second_moments,
)
from beyondpixel.losses.functional.rmi.moments import moments_backward, second_moments
from beyondpixel.losses.functional.rmi.strided_moments import strided_moments_backward, strided_second_moments


def region_count(length: int, region_size: int, step: int) -> int:
    """Number of regions along a side of the given length; not positive where none fits."""
    return (length - region_size) // step + 1


class RegionBound(torch.autograd.Function):
    """I_l (M,) float64 of pooled maps, and how many matrices needed more than the ridge."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        probs: Tensor,
        labels: Tensor,
        region_size: int,
        step: int,
        normalise: bool,
        ridge: float,
        kernels: ctypes.CDLL | None,
    ) -> tuple[Tensor, Tensor]:
        side = region_size**2
        height, width = probs.shape[1:]
        positions = region_count(height, region_size, step) * region_count(width, region_size, step)
        scale = 1 / positions if normalise else 1.0
        if kernels is not None and step == 1:
            moments = compiled_second_moments(kernels, labels, probs, region_size=region_size)
        elif step == 1:
            moments = second_moments(labels, probs, region_size=region_size)
        else:
            moments = strided_second_moments(labels, probs, region_size=region_size, step=step)
        wanted = bool(ctx.needs_input_grad[0])
        result = None
        if kernels is not None:
            result = compiled_bound(kernels, moments, scale=scale, ridge=ridge, with_weights=wanted)
        if result is None:
            result = bound_from_moments(moments, scale=scale, ridge=ridge, with_weights=wanted)
        bound, weights, jittered = result
        if weights is not None:
            ctx.save_for_backward(probs, labels, weights)
        ctx.kernels = kernels
        ctx.region_size, ctx.step, ctx.scale = region_size, step, scale / side
        ctx.mark_non_differentiable(jittered)
        return bound, jittered

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        probs, labels, weights = ctx.saved_tensors
        side = ctx.region_size
        with torch.autocast(probs.device.type, enabled=False):
            weights = weights * (grad * ctx.scale)[:, None, None]
            if ctx.kernels is not None and ctx.step == 1:
                grad_probs = compiled_moments_backward(ctx.kernels, weights, labels, probs, region_size=side)
            elif ctx.step == 1:
                grad_probs = moments_backward(weights, labels, probs, region_size=side)
            else:
                grad_probs = strided_moments_backward(weights, labels, probs, region_size=side, step=ctx.step)
        return grad_probs, None, None, None, None, None, None


def bound_from_moments(
    moments: Tensor, *, scale: float, ridge: float, with_weights: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """I_l from second moments.

    Args:
        moments: (M, 2d, 2d) float64, as of `moments.second_moments`.
        scale: what they are multiplied by, 1/n for covariances.
        ridge: ξ.
        with_weights: whether a gradient is wanted.

    Returns:
        I_l (M,), the weights (M, d, 2d) for which its gradient in P is weights [Y; P] / d or None, and how many
        matrices needed more than the ridge, an int64 scalar.
    """
    side = moments.shape[1] // 2
    if scale != 1:
        moments = moments * scale
    cov_labels, cross, cov_probs = moments[:, :side, :side], moments[:, :side, side:], moments[:, side:, side:]
    factor, jittered = stable_cholesky(cov_probs, ridge)
    # A = F Fᵀ, so C A⁻¹ Cᵀ = B Bᵀ with B = C F⁻ᵀ: a symmetric matrix, and no inverse
    half = torch.linalg.solve_triangular(factor, cross.mT, upper=False)  # Bᵀ
    residual_factor, residual_jittered = stable_cholesky(cov_labels - half.mT @ half, ridge)
    bound = -residual_factor.diagonal(dim1=1, dim2=2).log().sum(1) / side
    weights = None
    if with_weights:
        transposed = torch.linalg.solve_triangular(factor.mT, half, upper=True)  # Wᵀ
        from_labels = torch.cholesky_solve(transposed.mT, residual_factor).mT  # Wᵀ K
        weights = torch.cat([from_labels, -from_labels @ transposed.mT], 2)  # Wᵀ K, - Wᵀ K W
    return bound, weights, jittered + residual_jittered
