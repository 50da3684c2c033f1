"""Second moments of the regions of a map, without unfolding the map, and the way back.

A region is an R × R patch of a pooled map, read row by row as a vector of d = R² numbers. The vectors of all n
positions form Y (labels) and P (probabilities), d × n each. Only their 2d × 2d moments are wanted, and many are nearly
equal: the entry of two offsets (δy, δx) and (δy + τ, δx') sums the products of the same pairs of rows whatever δy is,
but for the rows at the top and the bottom. So a map is unfolded along its rows only (R copies and not R²), each τ takes
one matrix product, and going from δy to δy + 1 takes one row of products away and adds another. The way back has the
same structure.

Everything is float64, for a few maps at a time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from beyondpixel.losses.functional.chunks import chunks


def second_moments(labels: Tensor, probs: Tensor, *, region_size: int) -> Tensor:
    """Sums over all regions of products of centred entries.

    Args:
        labels: (M, h, w) pooled labels.
        probs: (M, h, w) pooled probabilities.
        region_size: R.

    Returns:
        (M, 2d, 2d) float64: [[Y Yᵀ, Y Pᵀ], [P Yᵀ, P Pᵀ]] with centred Y and P.
    """
    side = 2 * region_size**2
    moments = torch.empty(len(labels), side, side, dtype=torch.float64, device=labels.device)
    for part in chunks(len(labels), 16 * region_size * labels[0:1].numel(), labels.device):
        moments[part] = _moments(_shift_rows(labels[part], probs[part], region_size))
    return moments


def moments_backward(
    from_labels: Tensor, from_probs: Tensor, labels: Tensor, probs: Tensor, *, region_size: int
) -> Tensor:
    """Gradient in the pooled probabilities, where the gradient in the centred P is `from_labels` Y + `from_probs` P.

    Args:
        from_labels: (M, d, d) float64.
        from_probs: (M, d, d) float64.
        labels: (M, h, w) pooled labels.
        probs: (M, h, w) pooled probabilities.
        region_size: R.

    Returns:
        (M, h, w) in the dtype of probs.
    """
    grad = torch.empty_like(probs)
    for part in chunks(len(probs), 24 * region_size * labels[0:1].numel(), probs.device):
        shifted = _shift_rows(labels[part], probs[part], region_size)
        weights = torch.stack([from_labels[part], from_probs[part]], 2)  # (M, d, 2, d)
        grad[part] = _fold(_rows_gradient(weights, shifted), shifted)
    return grad


class _Shifted(NamedTuple):
    """Maps unfolded along their rows.

    Attributes:
        rows: (M, 2R, h, w'): entry (j R + δx, y, x) is map j (0 labels, 1 probabilities) at (y, x + δx).
        region_size: R.
        height: h', the number of regions one above the other.
    """

    rows: Tensor
    region_size: int
    height: int

    def offset_sums(self) -> Tensor:
        """(M, 2, R, R): for map j and offset (δy, δx) the sum over all regions."""
        sums = self.rows.sum(-1).unfold(2, self.height, 1).sum(-1)  # (M, 2R, R), the last being δy
        return sums.view(-1, 2, self.region_size, self.region_size).mT

    @property
    def positions(self) -> int:
        """n, the number of regions."""
        return self.height * self.rows.shape[3]


def _shift_rows(labels: Tensor, probs: Tensor, region_size: int) -> _Shifted:
    maps = torch.stack([labels, probs], 1).double()  # (M, 2, h, w)
    # regions are centred later; taking most of the mean away first keeps digits
    maps -= maps.mean((2, 3), keepdim=True)
    rows = maps.unfold(3, maps.shape[3] - region_size + 1, 1).transpose(2, 3).contiguous()  # (M, 2, R, h, w')
    return _Shifted(rows.flatten(1, 2), region_size, maps.shape[2] - region_size + 1)


def _moments(shifted: _Shifted) -> Tensor:
    rows, side, height = shifted
    count = len(rows)
    moments = rows.new_empty(count, 2, side, side, 2, side, side)  # j, δy, δx, j', δy', δx'
    for lag in range(side):
        upper, lower = rows[:, :, :height].flatten(2), rows[:, :, lag : lag + height].flatten(2)
        products = torch.bmm(upper, lower.mT)  # rows y and y + lag for y = 0 … h' - 1
        for offset in range(side - lag):
            if offset > 0:
                leaving, coming = offset - 1, offset - 1 + height
                products = products - torch.bmm(rows[:, :, leaving], rows[:, :, leaving + lag].mT)
                products += torch.bmm(rows[:, :, coming], rows[:, :, coming + lag].mT)
            block = products.view(count, 2, side, 2, side)
            moments[:, :, offset, :, :, offset + lag] = block
            moments[:, :, offset + lag, :, :, offset] = block.permute(0, 3, 4, 1, 2)
    moments = moments.view(count, 2 * side**2, 2 * side**2)
    sums = shifted.offset_sums().flatten(1)
    return moments.baddbmm_(sums[:, :, None], sums[:, None, :], alpha=-1 / shifted.positions)


def _rows_gradient(weights: Tensor, shifted: _Shifted) -> Tensor:
    """(M, R, h, w'): the gradient in the shifted rows of the probabilities."""
    rows, side, height = shifted
    count, _, full_height, width = rows.shape
    weights = weights.view(count, side, side, 2, side, side)  # δy, δx, j, δy', δx'
    means = shifted.offset_sums() / shifted.positions
    constants = (weights.flatten(3) @ means.flatten(1)[:, None, :, None])[..., 0]  # (M, δy, δx)
    grad = rows.new_empty(count, side, full_height, width)

    inner = slice(side - 1, max(height, side - 1))  # rows that all R vertical offsets reach
    if inner.stop > inner.start:
        grad[:, :, inner] = -constants.sum(1)[:, :, None, None]
        total = grad.new_zeros(count, side, (inner.stop - inner.start) * width)
        for lag in range(1 - side, side):
            # the sum over the pairs (δy, δy + lag)
            lag_weights = weights.diagonal(lag, 1, 4).sum(-1).flatten(2)  # (M, δx, 2R)
            total.baddbmm_(lag_weights, rows[:, :, inner.start + lag : inner.stop + lag].flatten(2))
        grad[:, :, inner] += total.view(count, side, -1, width)
    for row in [*range(inner.start), *range(inner.stop, full_height)]:
        grad[:, :, row] = 0
        for offset in range(max(0, row - height + 1), min(side - 1, row) + 1):
            top = row - offset
            patch = rows[:, :, top : top + side].view(count, 2, side, side, width).transpose(2, 3)  # j, δy', δx', x
            grad[:, :, row] += torch.bmm(weights[:, offset].flatten(2), patch.flatten(1, 3))
            grad[:, :, row] -= constants[:, offset, :, None]
    return grad


def _fold(grad: Tensor, shifted: _Shifted) -> Tensor:
    count, side, height, width = grad.shape
    maps = grad.new_zeros(count, height, width + shifted.region_size - 1)
    for offset in range(side):
        maps[:, :, offset : offset + width] += grad[:, offset]
    return maps
