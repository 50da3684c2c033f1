"""The paper's equations in PyTorch the plain way, as the authors' code computes them: slow, and obviously right.

The independent partner of the tests, and the yardstick of benchmarks/loss_speed.py. It shares nothing with the package.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def plain_bce_rmi(
    logits: Tensor,
    labels: Tensor,
    *,
    region_size: int = 3,
    factor: int = 4,
    pooling: str = "avg",
    pixel_weight: float = 0.5,
    ridge: float = 5e-4,
    normalize: bool = False,
    ignore_index: int = 255,
) -> Tensor:
    """BCE summed over classes and RMI, labels (N, H, W) with ignored pixels."""
    num_classes = logits.shape[1]
    valid = labels != ignore_index
    one_hot = F.one_hot(torch.where(valid, labels, 0).long(), num_classes).to(logits.dtype)
    one_hot = one_hot.permute(0, 3, 1, 2).contiguous() * valid[:, None]
    mask = valid[:, None].to(logits.dtype)
    bce = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    bce = (bce * mask).sum() / (valid.sum() + 1)
    probs = logits.sigmoid() * mask
    rmi = plain_rmi(
        probs, one_hot, region_size=region_size, factor=factor, pooling=pooling, ridge=ridge, normalize=normalize
    )
    return pixel_weight * bce + (1 - pixel_weight) * rmi


def plain_rmi(
    probs: Tensor,
    one_hot: Tensor,
    *,
    region_size: int,
    factor: int,
    pooling: str,
    ridge: float,
    normalize: bool = False,
) -> Tensor:
    """Mean over images of the sum over classes of -I_l."""
    bound = plain_bound(
        probs, one_hot, region_size=region_size, factor=factor, pooling=pooling, ridge=ridge, normalize=normalize
    )
    return -bound.mean(0).sum()


def plain_bound(
    probs: Tensor,
    one_hot: Tensor,
    *,
    region_size: int,
    factor: int,
    pooling: str,
    ridge: float,
    normalize: bool = False,
) -> Tensor:
    """I_l (N, C)."""
    step = 1
    if pooling == "stride":
        step = factor
    elif factor > 1 and pooling == "avg":
        probs, one_hot = (F.avg_pool2d(m, factor, factor, factor // 2) for m in (probs, one_hot))
    elif factor > 1 and pooling == "max":
        probs, one_hot = (F.max_pool2d(m, factor, factor, factor // 2) for m in (probs, one_hot))
    elif factor > 1 and pooling == "interp":
        size = (probs.shape[2] // factor, probs.shape[3] // factor)
        probs = F.interpolate(probs, size, mode="bilinear", align_corners=True)
        one_hot = F.interpolate(one_hot, size, mode="nearest")
    y, p = plain_regions(one_hot, region_size, step).double(), plain_regions(probs, region_size, step).double()
    y, p = y - y.mean(3, keepdim=True), p - p.mean(3, keepdim=True)
    count = y.shape[3] if normalize else 1
    eye = ridge * torch.eye(region_size**2, dtype=torch.float64, device=probs.device)
    cov_y, cov_p, cross = y @ y.mT / count, p @ p.mT / count, y @ p.mT / count
    residual = cov_y - cross @ torch.inverse(cov_p + eye) @ cross.mT
    factor_matrix = torch.linalg.cholesky(residual + eye)
    return -factor_matrix.diagonal(dim1=2, dim2=3).log().sum(2) / region_size**2


def plain_regions(maps: Tensor, region_size: int, step: int = 1) -> Tensor:
    """(N, C, R², positions): the stack of all shifts."""
    height, width = maps.shape[2] - region_size + 1, maps.shape[3] - region_size + 1
    shifts = [
        maps[:, :, dy : dy + height : step, dx : dx + width : step].flatten(2)
        for dy in range(region_size)
        for dx in range(region_size)
    ]
    return torch.stack(shifts, 2)
