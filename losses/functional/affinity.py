"""Affinity field term: similar predictions within an object, different across its border (Ke et al., ECCV 2018)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses.functional.arguments import check_positive_int, check_range
from beyondpixel.losses.functional.target import (
    multi_hot,
    read_target,
    resize_target,
    valid_mask,
    without_autocast,
    without_void_gradient,
)

_EPS = 1e-4
_NEIGHBORS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def affinity_field(
    preds: Tensor,
    target: Tensor,
    *,
    distance: int = 1,
    stride: int = 8,
    margin: float = 3.0,
    exclude_void: bool = False,
    ignore_index: int = 255,
) -> Tensor:
    r"""Affinity field term, the mean over edge pairs plus the mean over the others.

    For each pixel i, each of its 8 neighbors j at a distance, and each class c, with p the softmax of the logits,

    .. math::
        D_{ij}^c = p_j^c \log\frac{p_j^c}{p_i^c} + (1 - p_j^c) \log\frac{1 - p_j^c}{1 - p_i^c}, \qquad
        L = \operatorname*{mean}_{y_i^c \ne y_j^c} \max(0, m - D_{ij}^c) + \operatorname*{mean}_{y_i^c = y_j^c} D_{ij}^c

    after downsampling by a stride (logits bilinear with aligned corners, labels nearest), as in the RMI authors' port
    of Ke et al., ECCV 2018. A mean over no pairs is 0.

    Args:
        preds: (N, C, H, W) logits.
        target: (N, H, W) integer labels, or (N, C, H, W) multi-hot of 0 and 1.
        distance: distance from a pixel to its neighbors, in steps of the stride.
        stride: distance between compared pixels, in pixels of the full size.
        margin: m.
        exclude_void: whether pairs with a void pixel or one outside the image are excluded, as in the original; in
            the port they are included, as pixels without a class, and void pixels next to others then get a gradient
            through the interpolation.
        ignore_index: label of void pixels.

    Returns:
        Scalar ≥ 0.

    Raises:
        ValueError: if shapes do not fit, a number or a label is out of range, or preds are smaller than the stride.

    >>> import torch
    >>> affinity_field(torch.zeros(1, 2, 16, 16), torch.zeros(1, 16, 16, dtype=torch.long), exclude_void=True)
    tensor(0.)
    """
    check_positive_int("distance", distance)
    pairs = AffinityPairs((distance,), stride, margin, exclude_void)
    with without_autocast(preds, target):
        target = read_target(preds, target, ignore_index=ignore_index)
        total, count = pairs.sums(preds, target)
        loss = (total / count.clamp_min(1)).sum()
    return loss.to(torch.promote_types(preds.dtype, torch.float32))


@dataclass(frozen=True)
class AffinityPairs:
    """Comparison of pixel pairs, with the arguments of `affinity_field`, for neighbors at several distances.

    Raises:
        ValueError: if a number is out of range.
    """

    distances: tuple[int, ...]
    stride: int
    margin: float
    exclude_void: bool

    def __post_init__(self) -> None:
        check_positive_int("stride", self.stride)
        check_range("margin", self.margin, 0, math.inf)

    def sums(
        self, preds: Tensor, target: Tensor, class_weights: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sum over all pairs of a pixel and a neighbor, for each class, and count these pairs.

        Args:
            preds: (N, C, H, W) logits.
            target: as returned by `read_target`.
            class_weights: weights of edge pairs and of the others by the class of the center pixel, (C, distances)
                each, or None.

        Returns:
            Sum and count, (distances, 2) float64 each: of max(0, m - KL) over the pairs whose labels differ in the
            class, and of KL over the others.
        """
        height, width = preds.shape[2:]
        size = (height // self.stride, width // self.stride)
        if min(size) < 1:
            raise ValueError(
                f"stride: preds of {height} × {width} have no pixel at stride {self.stride}; "
                f"use larger crops or a smaller stride"
            )
        preds = preds.to(torch.promote_types(preds.dtype, torch.float32))
        if self.exclude_void:
            preds = without_void_gradient(preds, target)
        small = resize_target(target, size)
        valid, one_hot = valid_mask(small)[:, None], multi_hot(small, preds.shape[1], torch.bool)
        probs = torch.where(valid, F.interpolate(preds, size, mode="bilinear", align_corners=True).softmax(1), 0)
        center = probs.clamp_min(_EPS)
        pixel_weights = None
        if class_weights is not None:  # (2, N, h, w, distances) by the class of the center pixel
            classes = one_hot.int().argmax(1)
            pixel_weights = torch.stack([weights[classes] for weights in class_weights])
        sums, counts = [], []
        for number, distance in enumerate(self.distances):
            for dy, dx in _NEIGHBORS:
                step = (dy * distance, dx * distance)
                neighbor = _shift(probs, step).clamp_min(_EPS)
                rest = _complement(neighbor)
                divergence = neighbor * (neighbor / center).log() + rest * (rest / _complement(center)).log()
                edge = _shift(one_hot, step) != one_hot
                chosen = torch.stack([edge, ~edge])
                if self.exclude_void:
                    chosen = chosen & _shift(valid, step) & valid
                values = torch.where(chosen, torch.stack([(self.margin - divergence).clamp_min(0), divergence]), 0)
                if pixel_weights is not None:
                    values = values * pixel_weights[:, :, None, ..., number]
                sums.append(values.sum((1, 2, 3, 4), dtype=torch.float64))
                counts.append(chosen.sum((1, 2, 3, 4)).double())
        shape = (len(self.distances), len(_NEIGHBORS), 2)
        return torch.stack(sums).view(shape).sum(1), torch.stack(counts).view(shape).sum(1)


def _complement(probs: Tensor) -> Tensor:
    return 1 - probs + _EPS


def _shift(planes: Tensor, step: tuple[int, int]) -> Tensor:
    """Return at each pixel the value `step` away from it, 0 outside."""
    height, width = planes.shape[2:]
    reach = max(abs(step[0]), abs(step[1]))
    padded = F.pad(planes, (reach, reach, reach, reach))
    top, left = reach + step[0], reach + step[1]
    return padded[:, :, top : top + height, left : left + width]
