"""The lower bound of region mutual information as a function."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses.functional._validation import LabelTruth, Truth, check_probs, read_target
from beyondpixel.losses.functional.map_pass import MapPass
from beyondpixel.losses.functional.rmi.bound import RegionBound
from beyondpixel.losses.functional.rmi.compiled import CompiledMapPass, compiled_pool_truth, fits_kernels, load_kernels
from beyondpixel.losses.functional.rmi.options import RegionOptions, as_factors
from beyondpixel.losses.functional.rmi.pooling import pool_truth


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
) -> Tensor:
    r"""Lower bound I_l of the mutual information of regions, per image and class (Zhao et al., NeurIPS 2019).

    Labels and probabilities are pooled by the downsampling factor, and each R × R region of a pooled map is read as a
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

    Returns:
        (N, C) I_l, larger is better; float64 if probs is, else float32.

    Raises:
        ValueError: if shapes do not fit, a label is out of range, a name is unknown, or a region does not fit the
            pooled map.

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
    options = RegionOptions(region_size, as_factors(downsampling_factor), pooling, covariance, ridge)
    num_classes = probs.shape[1] if probs.ndim > 1 else 0
    truth = read_target(probs, target, num_classes, ignore_index)
    check_probs(probs)
    with torch.autocast(probs.device.type, enabled=False):
        bound = fused_terms(probs, truth, options, with_logits=False, pixel=False).bound
    truth.check_values()
    return bound.to(torch.promote_types(probs.dtype, torch.float32))


class FusedTerms(NamedTuple):
    """What one pass over the scores gives.

    Attributes:
        pixel_total: float64 scalar, the summed binary cross entropy (0 if it was not asked for).
        bound: (N, C) float64, I_l averaged over the downsampling factors.
        absent: (N, C) bool, True where the pooled label map is empty for every factor; None if not asked for.
        jittered: int64 scalar, matrices that needed more than the ridge.
    """

    pixel_total: Tensor
    bound: Tensor
    absent: Tensor | None
    jittered: Tensor


def fused_terms(
    scores: Tensor, truth: Truth, options: RegionOptions, *, with_logits: bool, pixel: bool, find_absent: bool = False
) -> FusedTerms:
    """Binary cross entropy and I_l of the same scores."""
    batch, num_classes, height, width = scores.shape
    pixel_total, bounds, absent, jittered = [], [], [], []
    if len(options.factors) > 1:
        # the gradients of the factors are added up before they are rounded
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    kernels = None
    if options.backend == "compiled" and scores.device.type == "cpu" and scores.dtype != torch.float64:
        kernels = load_kernels()
    for number, factor in enumerate(options.factors):
        plan = options.plan(factor, height, width)
        with_pixel = pixel and number == 0
        if kernels is not None and with_logits and isinstance(truth, LabelTruth) and fits_kernels(scores, plan.windows):
            total, probs = CompiledMapPass.apply(scores, truth, with_pixel, plan.windows, kernels)
            labels = compiled_pool_truth(kernels, truth, num_classes, plan.windows)
        else:
            total, probs = MapPass.apply(scores, truth, with_logits, with_pixel, plan.windows)
            labels = pool_truth(truth, num_classes, plan.windows, probs.dtype)
        if plan.interpolated is not None:
            probs = F.interpolate(probs, plan.interpolated, mode="bilinear", align_corners=True)
            labels = F.interpolate(labels, plan.interpolated, mode="nearest")
        bound, count = RegionBound.apply(
            probs.flatten(0, 1),
            labels.flatten(0, 1),
            options.region_size,
            plan.step,
            options.covariance == "mean",
            options.ridge,
            kernels,
        )
        pixel_total.append(total)
        bounds.append(bound.view(batch, num_classes))
        if find_absent:
            absent.append(labels.flatten(2).amax(2) == 0)
        jittered.append(count)
    return FusedTerms(
        pixel_total[0],
        torch.stack(bounds).mean(0),
        torch.stack(absent).all(0) if find_absent else None,
        torch.stack(jittered).sum(),
    )
