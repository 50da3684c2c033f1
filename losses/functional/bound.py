"""The lower bound of region mutual information, Eq. 9-16 of Zhao et al., NeurIPS 2019."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses.functional.arguments import check_choice, check_positive_int, check_ridge
from beyondpixel.losses.functional.log_det import half_log_det
from beyondpixel.losses.functional.target import multi_hot, read_target, resize_target, without_autocast
from beyondpixel.losses.ops.operators import BACKENDS, bce_pool, region_moments
from beyondpixel.losses.ops.plain import pooled_size

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

    Labels and probabilities are pooled by the downsampling factor, and each R × R region of the result is flattened to
    a vector of d = R² values: Y for labels, P for probabilities. Mutual information is at least (Eq. 9, 10)

    .. math:: I(Y; P) \ge H(Y) - \tfrac12 \log\left((2 \pi e)^d \det \Sigma_{Y|P}\right),

    where only the determinant depends on P. The covariance of Y given P is approximated by that of the residual of the
    best linear estimate (Eq. 12, 13), and the bound is scaled by 1 / d (Eq. 14, 15):

    .. math::
        M = \Sigma_Y - \mathrm{Cov}(Y, P) (\Sigma_P + \xi I)^{-1} \mathrm{Cov}(Y, P)^T + \xi I, \qquad
        I_l = -\frac{1}{2d} \log\det M.

    The loss of Eq. 16 is the mean over images of the sum over classes of -I_l. A class that is absent from an image
    has M = ξ I, hence the constant I_l = -½ log ξ (3.80 for ξ = 5e-4) and no gradient.

    The authors add 1e-6 to all probabilities; a constant cancels in covariances, so it is omitted here.

    Args:
        probs: (N, C, H, W) probabilities in [0, 1].
        target: (N, H, W) integer labels, or (N, C, H, W) multi-hot of 0 and 1.
        region_size: R.
        downsampling_factor: DF; with several, the mean of their bounds is returned.
        pooling: "avg", "max", "interp" (bilinear) or "stride" (no pooling; every DF-th region is used).
        covariance: "sum" (the authors' code; the value then depends on the crop size) or "mean" (the paper's text).
        ridge: ξ, 5e-4 with "sum" in the authors' code, 1e-6 with "mean" in the paper.
        ignore_index: label of void pixels, which count as label 0 and probability 0.
        backend: see `RMILoss`.

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
    bound = RegionBound(region_size, downsampling_factor, pooling, covariance, ridge, backend)
    with without_autocast(probs, target):
        target = read_target(probs, target, ignore_index=ignore_index, with_logits=False)
        _, values, _, _ = bound(probs, target, with_logits=False, with_bce=False)
    return values.to(torch.promote_types(probs.dtype, torch.float32))


@dataclass(frozen=True)
class RegionBound:
    """Lower bound and binary cross entropy of a batch, with the arguments of `rmi_lower_bound`.

    Raises:
        ValueError: if an argument is out of range or unknown.
    """

    region_size: int
    downsampling_factor: int | Sequence[int]
    pooling: str
    covariance: str
    ridge: float
    backend: str

    def __post_init__(self) -> None:
        check_positive_int("region_size", self.region_size)
        if not self.factors:
            raise ValueError("downsampling_factor: expected at least one factor, got an empty sequence")
        for factor in self.factors:
            check_positive_int("downsampling_factor", factor)
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("covariance", self.covariance, COVARIANCES)
        if self.backend in _REPLACED_BACKENDS:
            raise ValueError(
                f"backend: {self.backend!r} is now called {_REPLACED_BACKENDS[self.backend]!r}; "
                f"use 'auto', which selects the fastest available, or one of {', '.join(map(repr, BACKENDS))}"
            )
        check_choice("backend", self.backend, BACKENDS)
        check_ridge(self.ridge)

    @property
    def factors(self) -> tuple[int, ...]:
        """The downsampling factors as a tuple, also for a single one."""
        factor = self.downsampling_factor
        return tuple(factor) if isinstance(factor, Sequence) else (factor,)

    def __call__(
        self, preds: Tensor, target: Tensor, *, with_logits: bool, with_bce: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute binary cross entropy and I_l from the same logits or probabilities.

        Args:
            preds: (N, C, H, W).
            target: as returned by `read_target`.
            with_logits: whether preds are logits.
            with_bce: whether to compute the binary cross entropy.

        Returns:
            The summed binary cross entropy, float64 scalar (0 without `with_bce`); I_l averaged over the factors,
            (N, C) float64; whether the pooled target is empty for every factor, (N, C) bool; and the number of matrices
            that needed more than the ridge, int64 scalar.
        """
        if len(self.factors) > 1:
            # the gradients of the factors are summed before they are rounded to half precision
            preds = preds.to(torch.promote_types(preds.dtype, torch.float32))
        results = [
            self._at_factor(preds, target, factor, with_logits=with_logits, with_bce=with_bce and number == 0)
            for number, factor in enumerate(self.factors)
        ]
        bce, bounds, absent, jittered = zip(*results, strict=True)
        return bce[0], torch.stack(bounds).mean(0), torch.stack(absent).all(0), torch.stack(jittered).sum()

    def _at_factor(
        self, preds: Tensor, target: Tensor, factor: int, *, with_logits: bool, with_bce: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pooled_here = self.pooling in ("avg", "max") and factor > 1
        height, width = self._checked_size(preds, factor)
        bce, probs, labels = bce_pool(
            preds,
            target,
            pooling=self.pooling if pooled_here else "identity",
            kernel_size=factor if pooled_here else 1,
            with_logits=with_logits,
            with_bce=with_bce,
            backend=self.backend,
        )
        if self.pooling == "interp" and factor > 1:
            probs = F.interpolate(probs, (height, width), mode="bilinear", align_corners=True)
            target = resize_target(target, (height, width))
        if not pooled_here:
            labels = multi_hot(target, preds.shape[1], probs.dtype)
        step = factor if self.pooling == "stride" else 1
        moments = region_moments(labels, probs, region_size=self.region_size, step=step, backend=self.backend)
        if self.covariance == "mean":
            rows, columns = ((side - self.region_size) // step + 1 for side in (height, width))
            moments = moments / (rows * columns)
        value, jittered = half_log_det(moments, self.ridge, residual_ridge=self.ridge)
        return bce, -value / self.region_size**2, labels.flatten(2).amax(2) == 0, jittered

    def _checked_size(self, preds: Tensor, factor: int) -> tuple[int, int]:
        """Return height and width of the pooled maps after checking that a region fits."""
        height, width = preds.shape[2:]
        if factor > 1 and self.pooling == "interp":
            size = height // factor, width // factor
        elif factor > 1 and self.pooling in ("avg", "max"):
            size = pooled_size(height, factor), pooled_size(width, factor)
        else:
            size = height, width
        if min(size) < self.region_size or min(height, width) == 0:
            raise ValueError(
                f"region_size: a region of {self.region_size} × {self.region_size} does not fit the pooled size "
                f"{size[0]} × {size[1]} (preds of {height} × {width}, downsampling_factor {factor}, "
                f"pooling {self.pooling!r}); use larger crops, or a smaller region_size or downsampling_factor"
            )
        return size
