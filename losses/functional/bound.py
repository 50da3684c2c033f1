"""The lower bound of region mutual information, Eq. 9-16 of Zhao et al., NeurIPS 2019."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses.functional.target import (
    check_choice,
    check_positive_int,
    multi_hot,
    read_target,
    resize_target,
)
from beyondpixel.losses.ops.operators import BACKENDS, bce_pool, region_moments

POOLINGS = ("avg", "max", "interp", "stride")
COVARIANCES = ("sum", "mean")
_REPLACED_BACKENDS = {"eager": "plain", "compiled": "c"}


def rmi_lower_bound(
    probs: Tensor,
    target: Tensor,
    *,
    region_size: int = 3,
    downsampling_factor: int | Sequence[int] = 4,
    pooling: str = "avg",
    covariance: str = "sum",
    ridge: float = 5e-4,
    ignore_index: int = 255,
    backend: str = "auto",
) -> Tensor:
    r"""Lower bound I_l of the mutual information of regions, per image and class (Zhao et al., NeurIPS 2019).

    Labels and probabilities are pooled by the downsampling factor, and each R × R region of the result is read as a
    vector of d = R² numbers: Y for labels, P for probabilities. Mutual information is at least (Eq. 9, 10)

    .. math:: I(Y; P) \ge H(Y) - \tfrac12 \log\left((2 \pi e)^d \det \Sigma_{Y|P}\right),

    of which only the determinant depends on P. The covariance of Y given P is taken to be that of the residual of the
    best linear estimate (Eq. 12, 13), and the bound is scaled by d (Eq. 14, 15):

    .. math::
        M = \Sigma_Y - \mathrm{Cov}(Y, P) (\Sigma_P + \xi I)^{-1} \mathrm{Cov}(Y, P)^T + \xi I, \qquad
        I_l = -\frac{1}{2d} \log\det M.

    The loss of Eq. 16 is the mean over images of the sum over classes of -I_l. A class that is absent from an image
    has M = ξ I, hence the constant I_l = -½ log ξ (3.80 for ξ = 5e-4) and no gradient.

    The authors add 1e-6 to all probabilities; a constant cancels in covariances, so it is left out here.

    Args:
        probs: (N, C, H, W) probabilities in [0, 1].
        target: (N, H, W) integer labels, or (N, C, H, W) multi-hot of 0 and 1.
        region_size: R.
        downsampling_factor: DF; of several, the mean of the bounds is returned.
        pooling: "avg", "max", "interp" (bilinear) or "stride" (none; every DF-th region is taken).
        covariance: "sum" (the authors' code; the value then depends on the crop size) or "mean" (the paper's text).
        ridge: ξ, 5e-4 with "sum" in the authors' code, 1e-6 with "mean" in the paper.
        ignore_index: label of void pixels, which enter as label 0 and probability 0.
        backend: as of `RMILoss`.

    Returns:
        (N, C) I_l, larger is better; float64 if probs is, else float32.

    Raises:
        ValueError: if shapes do not fit, a label is out of range, a name is unknown, or a region does not fit the
            pooled size.

    >>> import torch
    >>> target = torch.zeros(1, 16, 16, dtype=torch.long)
    >>> target[:, 4:12, 4:12] = 1
    >>> perfect = torch.nn.functional.one_hot(target).movedim(-1, 1).float()
    >>> vague = torch.full_like(perfect, 0.5)
    >>> rmi_lower_bound(perfect, target, region_size=2, downsampling_factor=2)
    tensor([[3.4540, 3.4540]])
    >>> rmi_lower_bound(vague, target, region_size=2, downsampling_factor=2)
    tensor([[-0.4608, -0.4597]])
    """
    options = RegionOptions(region_size, as_factors(downsampling_factor), pooling, covariance, ridge, backend)
    check_options(options)
    with torch.autocast(probs.device.type, enabled=False):
        target = read_target(probs, target, ignore_index=ignore_index, with_logits=False)
        bound = region_terms(probs, target, options, with_logits=False, with_bce=False).bound
    return bound.to(torch.promote_types(probs.dtype, torch.float32))


class RegionOptions(NamedTuple):
    """How regions are cut and how their covariances are taken; the arguments of `rmi_lower_bound`."""

    region_size: int
    factors: tuple[int, ...]
    pooling: str
    covariance: str
    ridge: float
    backend: str


class RegionTerms(NamedTuple):
    """What is computed of one batch.

    Attributes:
        bce: float64 scalar, the summed binary cross entropy (0 if it was not asked for).
        bound: (N, C) float64, I_l averaged over the downsampling factors.
        absent: (N, C) bool, True where the pooled target is empty for every factor.
        jittered: int64 scalar, matrices that needed more than the ridge.
    """

    bce: Tensor
    bound: Tensor
    absent: Tensor
    jittered: Tensor


def as_factors(downsampling_factor: int | Sequence[int]) -> tuple[int, ...]:
    """One factor or several as a tuple."""
    return tuple(downsampling_factor) if isinstance(downsampling_factor, Sequence) else (downsampling_factor,)


def check_options(options: RegionOptions) -> None:
    """Raise a ValueError that names the option which is out of range or unknown."""
    check_positive_int("region_size", options.region_size)
    if not options.factors:
        raise ValueError("downsampling_factor: expected at least one factor, got an empty sequence")
    for factor in options.factors:
        check_positive_int("downsampling_factor", factor)
    check_choice("pooling", options.pooling, POOLINGS)
    check_choice("covariance", options.covariance, COVARIANCES)
    if options.backend in _REPLACED_BACKENDS:
        raise ValueError(
            f"backend: {options.backend!r} is now called {_REPLACED_BACKENDS[options.backend]!r}; "
            f"use 'auto', which takes the fastest there is, or one of {', '.join(map(repr, BACKENDS))}"
        )
    check_choice("backend", options.backend, BACKENDS)
    if not 0 < options.ridge < float("inf"):
        raise ValueError(f"ridge: expected a positive number, got {options.ridge!r}")


def region_terms(
    preds: Tensor, target: Tensor, options: RegionOptions, *, with_logits: bool, with_bce: bool
) -> RegionTerms:
    """Binary cross entropy and I_l of the same logits or probabilities, target as of `read_target`."""
    if len(options.factors) > 1:
        # the gradients of the factors are added up before they are rounded
        preds = preds.to(torch.promote_types(preds.dtype, torch.float32))
    terms = [
        _terms_of_factor(preds, target, factor, options, with_logits=with_logits, with_bce=with_bce and number == 0)
        for number, factor in enumerate(options.factors)
    ]
    bce, bounds, absent, jittered = zip(*terms, strict=True)
    return RegionTerms(bce[0], torch.stack(bounds).mean(0), torch.stack(absent).all(0), torch.stack(jittered).sum())


def _terms_of_factor(
    preds: Tensor, target: Tensor, factor: int, options: RegionOptions, *, with_logits: bool, with_bce: bool
) -> RegionTerms:
    pooled_here = options.pooling in ("avg", "max") and factor > 1
    bce, probs, labels = bce_pool(
        preds,
        target,
        pooling=options.pooling if pooled_here else "identity",
        kernel_size=factor if pooled_here else 1,
        with_logits=with_logits,
        with_bce=with_bce,
        backend=options.backend,
    )
    if options.pooling == "interp" and factor > 1:
        size = (preds.shape[2] // factor, preds.shape[3] // factor)
        _check_size(size, preds, factor, options)
        probs = F.interpolate(probs, size, mode="bilinear", align_corners=True)
        target = resize_target(target, size)
    if not pooled_here:
        labels = multi_hot(target, preds.shape[1], probs.dtype)
    step = factor if options.pooling == "stride" else 1
    rows, columns = _check_size((probs.shape[2], probs.shape[3]), preds, factor, options)
    moments = region_moments(labels, probs, region_size=options.region_size, step=step, backend=options.backend)
    if options.covariance == "mean":
        moments = moments / (rows * columns)
    bound, jittered = bound_from_moments(moments, options.ridge)
    return RegionTerms(bce, bound, labels.flatten(2).amax(2) == 0, jittered)


def _check_size(size: tuple[int, int], preds: Tensor, factor: int, options: RegionOptions) -> tuple[int, int]:
    """Number of regions below and beside each other, at least one each."""
    step = factor if options.pooling == "stride" else 1
    region_size = options.region_size
    if min(size) < region_size:
        raise ValueError(
            f"region_size: a region of {region_size} × {region_size} does not fit the pooled size "
            f"{size[0]} × {size[1]} (preds of {preds.shape[2]} × {preds.shape[3]}, downsampling_factor {factor}, "
            f"pooling {options.pooling!r}); use larger crops, or a smaller region_size or downsampling_factor"
        )
    return (size[0] - region_size) // step + 1, (size[1] - region_size) // step + 1


def bound_from_moments(moments: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """I_l from second moments.

    With S_Y, C and S_P their blocks, d × d each, A = S_P + ξ I = F Fᵀ and B = F⁻¹ Cᵀ,

        M = S_Y - Bᵀ B + ξ I = L Lᵀ,    I_l = -Σ log L_ii / d,

    which needs no inverse and keeps M symmetric. Differentiating log det M with W = C A⁻¹ gives for the moments

        ∂I_l/∂[S_Y C; Cᵀ S_P] = -Vᵀ V / 2d,    V = L⁻¹ [I, -W].

    Args:
        moments: (..., 2d, 2d) float64 symmetric.
        ridge: ξ.

    Returns:
        I_l (...), and how many matrices needed more than the ridge, an int64 scalar.
    """
    side = moments.shape[-1] // 2
    with torch.no_grad():
        upper, cov_probs = moments[..., :side, :], moments[..., side:, side:]
        cov_labels, cross = upper[..., :side], upper[..., side:]
        factor, jittered = stable_cholesky(cov_probs, ridge)
        half = torch.linalg.solve_triangular(factor, cross.mT, upper=False)
        residual_factor, residual_jittered = stable_cholesky(cov_labels - half.mT @ half, ridge)
        bound = -residual_factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) / side
        if moments.requires_grad:
            weights = torch.linalg.solve_triangular(factor.mT, half, upper=True).mT  # W
            eye = torch.eye(side, dtype=moments.dtype, device=moments.device).expand_as(weights)
            root = torch.linalg.solve_triangular(residual_factor, torch.cat([eye, -weights], -1), upper=False)
            gradient = root.mT @ root / (-2 * side)
    if moments.requires_grad:
        # adds nothing but the gradient: autograd's own goes through two Cholesky factors and loses digits
        bound = bound + (gradient * (moments - moments.detach())).sum((-2, -1))
    return bound, jittered + residual_jittered


def stable_cholesky(matrix: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Cholesky factor that never aborts a run and branches on no value: it works inside graphs and on streams.

    A matrix that is not positive definite with the ridge gets 2⁻²⁴ of its largest diagonal entry more (at least the
    ridge again), which is past the rounding of its float64 entries; if even that fails, it is replaced by its largest
    diagonal entry times the identity.

    Args:
        matrix: (..., d, d) symmetric float64.
        ridge: at least 0, added to the diagonal in any case.

    Returns:
        The lower factors (..., d, d), NaN where the matrix is not finite, and the number of finite matrices for which
        the ridge was not enough, an int64 scalar.
    """
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    largest = matrix.diagonal(dim1=-2, dim2=-1).abs().amax(-1)[..., None, None]
    jitter = (largest * 2**-24).clamp_min(max(ridge, torch.finfo(matrix.dtype).tiny))
    shifted = matrix + ridge * eye
    # the variant that raises would end the run
    factor, info = torch.linalg.cholesky_ex(shifted)
    second, second_info = torch.linalg.cholesky_ex(shifted + jitter * eye)
    last = (largest + jitter).sqrt() * eye
    failed = (info > 0)[..., None, None]
    factor = torch.where(failed, torch.where((second_info > 0)[..., None, None], last, second), factor)
    finite = shifted.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    return torch.where(finite, factor, torch.nan), (failed & finite).sum()
