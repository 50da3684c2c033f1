"""Affinity of neighboring pixels: alike within an object, unlike across its border (Ke et al., ECCV 2018)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses.functional.target import (
    multi_hot,
    read_target,
    resize_target,
    valid_mask,
    without_void_gradient,
)

_SMALLEST = 1e-4
_NEIGHBORS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


class Field(NamedTuple):
    """What pairs of pixels are compared on, at a stride.

    Attributes:
        probs: (N, C, h, w) softmax probabilities, 0 where void.
        one_hot: (N, C, h, w) bool, False where void.
        valid: (N, h, w) bool.
    """

    probs: Tensor
    one_hot: Tensor
    valid: Tensor


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

    For a pixel i and each of its 8 neighbors j at a distance, and each class c, with p the softmax of the logits,

    .. math::
        D_{ij}^c = p_j^c \log\frac{p_j^c}{p_i^c} + (1 - p_j^c) \log\frac{1 - p_j^c}{1 - p_i^c}, \qquad
        L = \operatorname*{mean}_{y_i^c \ne y_j^c} \max(0, m - D_{ij}^c) + \operatorname*{mean}_{y_i^c = y_j^c} D_{ij}^c

    at a stride (logits bilinear with aligned corners, labels nearest), as the RMI authors' port of
    Ke et al., ECCV 2018. A mean over no pair is 0.

    Args:
        preds: (N, C, H, W) logits.
        target: (N, H, W) integer labels, or (N, C, H, W) multi-hot of 0 and 1.
        distance: from a pixel to its neighbors, at the stride.
        stride: pixels of the full size from one that is compared to the next.
        margin: m.
        exclude_void: whether pairs with a void pixel or one outside the image are left out, as in the original; in
            the port they count, as pixels without a class, and through the interpolation void pixels next to others
            then have a gradient.
        ignore_index: label of void pixels.

    Returns:
        Scalar ≥ 0.

    Raises:
        ValueError: if shapes do not fit, a label is out of range, or preds are smaller than the stride.

    >>> import torch
    >>> affinity_field(torch.zeros(1, 2, 16, 16), torch.zeros(1, 16, 16, dtype=torch.long), exclude_void=True)
    tensor(0.)
    """
    with torch.autocast(preds.device.type, enabled=False):
        target = read_target(preds, target, ignore_index=ignore_index)
        field = make_field(preds, target, stride, exclude_void=exclude_void)
        sums = pair_sums(field, distance, margin, exclude_void=exclude_void)
        loss = torch.stack([total / count.clamp_min(1) for total, count in sums.values()]).sum()
    return loss.to(torch.promote_types(preds.dtype, torch.float32))


def make_field(preds: Tensor, target: Tensor, stride: int, *, exclude_void: bool) -> Field:
    """Probabilities and labels at a stride; target as of `read_target`."""
    height, width = preds.shape[2:]
    size = (height // stride, width // stride)
    if min(size) < 1:
        raise ValueError(
            f"stride: preds of {height} × {width} have no pixel at stride {stride}; "
            f"use larger crops or a smaller stride"
        )
    preds = preds.to(torch.promote_types(preds.dtype, torch.float32))
    if exclude_void:
        preds = without_void_gradient(preds, target)
    probs = F.interpolate(preds, size, mode="bilinear", align_corners=True).softmax(1)
    small = resize_target(target, size)
    valid = valid_mask(small)
    return Field(torch.where(valid[:, None], probs, 0), multi_hot(small, preds.shape[1], torch.bool), valid)


def pair_sums(
    field: Field,
    distance: int,
    margin: float,
    *,
    exclude_void: bool,
    edge_weights: Tensor | None = None,
    same_weights: Tensor | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums over all pairs of a pixel and a neighbor at a distance, for each class, and the numbers of these pairs.

    Args:
        field: what pairs are compared on.
        distance: from the pixel in the middle to its neighbors.
        margin: m.
        exclude_void: whether pairs with a void pixel or one outside the image are left out.
        edge_weights, same_weights: (N, h, w) weights of the pixel in the middle, if any.

    Returns:
        "edge", max(0, m - KL) of the pairs whose labels differ in the class, and "same", KL of the others: sum and
        number, float64 scalars.
    """
    center = field.probs.clamp_min(_SMALLEST)
    parts = []
    for dy, dx in _NEIGHBORS:
        step = (dy * distance, dx * distance)
        neighbor = _shift(field.probs, step).clamp_min(_SMALLEST)
        divergence = neighbor * (neighbor / center).log() + _rest(neighbor) * (_rest(neighbor) / _rest(center)).log()
        edge = _shift(field.one_hot, step) != field.one_hot
        same = ~edge
        if exclude_void:
            counted = (_shift(field.valid[:, None], step) & field.valid[:, None]).expand_as(edge)
            edge, same = edge & counted, same & counted
        hinge = (margin - divergence).clamp_min(0)
        totals = [_weighted_sum(hinge, edge, edge_weights), _weighted_sum(divergence, same, same_weights)]
        parts.append(torch.stack([*totals, edge.sum().double(), same.sum().double()]))
    edge_total, same_total, edge_count, same_count = torch.stack(parts).sum(0).unbind()
    return {"edge": (edge_total, edge_count), "same": (same_total, same_count)}


def _weighted_sum(values: Tensor, where: Tensor, weights: Tensor | None) -> Tensor:
    chosen = torch.where(where, values, 0)
    if weights is not None:
        chosen = chosen * weights[:, None]
    return chosen.sum(dtype=torch.float64)


def _rest(probs: Tensor) -> Tensor:
    return 1 - probs + _SMALLEST


def _shift(planes: Tensor, step: tuple[int, int]) -> Tensor:
    """At each pixel the value `step` away from it, 0 outside."""
    height, width = planes.shape[2:]
    reach = max(abs(step[0]), abs(step[1]))
    padded = F.pad(planes, (reach, reach, reach, reach))
    top, left = reach + step[0], reach + step[1]
    return padded[:, :, top : top + height, left : left + width]
