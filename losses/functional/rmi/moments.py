"""Second moments of the regions of a map, without unfolding the map, and the way back.

A region is an R × R patch of a pooled map, read row by row as a vector of d = R² numbers. The vectors of all n
positions form Y (labels) and P (probabilities), d × n each. Only their 2d × 2d moments are wanted, and many are nearly
equal: the entry of two offsets (δy, δx) and (δy + τ, δx') sums the products of pairs of rows τ apart, whatever δy is,
but for a few rows at the top and the bottom. So a map is unfolded along its rows only (R copies and not R²), each τ
takes one matrix product over all pairs of rows, and the few pairs that an offset does not reach are taken away. The way
back has the same structure: one matrix product for each τ, and the rows that not all offsets reach apart.

Everything is float64, for a few maps at a time.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from beyondpixel.losses.functional.chunks import chunks
from beyondpixel.losses.functional.scratch import Scratch


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
    scratch = Scratch(labels.device)
    for part in chunks(len(labels), 8 * region_size * labels[0:1].numel(), labels.device):
        moments[part] = _moments(_shift_rows(labels[part], probs[part], region_size, scratch))
    return moments


def moments_backward(weights: Tensor, labels: Tensor, probs: Tensor, *, region_size: int) -> Tensor:
    """Gradient in the pooled probabilities, where the gradient in the centred P is weights [Y; P].

    Args:
        weights: (M, d, 2d) float64.
        labels: (M, h, w) pooled labels.
        probs: (M, h, w) pooled probabilities.
        region_size: R.

    Returns:
        (M, h, w) in the dtype of probs.
    """
    grad = torch.empty_like(probs)
    scratch = Scratch(probs.device)
    for part in chunks(len(probs), 8 * region_size * labels[0:1].numel(), probs.device):
        shifted = _shift_rows(labels[part], probs[part], region_size, scratch)
        grad[part] = _fold(_rows_gradient(weights[part], shifted, scratch), scratch)
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

    def pick(self, places: Tensor) -> Tensor:
        """(M, K, 2R, w'): some rows y, each of all shifted maps, from `_places` of them."""
        count, maps, height, width = self.rows.shape
        # in one go: a permutation of so short axes takes several times as long
        return self.rows.view(count, maps * height, width).index_select(1, places).view(count, -1, maps, width)

    @property
    def positions(self) -> int:
        """n, the number of regions."""
        return self.height * self.rows.shape[3]


def _shift_rows(labels: Tensor, probs: Tensor, region_size: int, scratch: Scratch) -> _Shifted:
    count, height, width = labels.shape
    maps = scratch.take("maps", (count, 2, height, width), torch.float64)
    for number, values in enumerate((labels, probs)):
        # regions are centred later; taking most of the mean away first keeps digits
        torch.sub(values, values.mean((1, 2), keepdim=True, dtype=torch.float64), out=maps[:, number])
    rows = scratch.take("rows", (count, 2, region_size, height, width - region_size + 1), torch.float64)
    rows.copy_(maps.unfold(3, rows.shape[4], 1).transpose(2, 3))
    return _Shifted(rows.flatten(1, 2), region_size, height - region_size + 1)


def _moments(shifted: _Shifted) -> Tensor:
    rows, side, height = shifted
    flat, width = rows.flatten(2), rows.shape[3]
    full = flat.shape[2]
    products = [torch.bmm(flat[:, :, : full - lag * width], flat[:, :, lag * width :].mT) for lag in range(side)]
    plan = _moments_plan(side, height, rows.device)
    terms = torch.stack(products, 1)  # (M, R, 2R, 2R)
    if side > 1:
        terms = torch.cat([terms, shifted.pick(plan.upper) @ shifted.pick(plan.lower).mT], 1)
    blocks = plan.signs @ terms.flatten(2)  # (M, pairs of vertical offsets, 4R²)
    moments = blocks.flatten(1).index_select(1, plan.entries).view(-1, 2 * side**2, 2 * side**2)
    sums = shifted.offset_sums().flatten(1)
    return moments.baddbmm_(sums[:, :, None], sums[:, None, :], alpha=-1 / shifted.positions)


class _MomentsPlan(NamedTuple):
    """How moments are put together from products of rows.

    Attributes:
        upper, lower: places of the rows of the pairs near the border.
        signs: (pairs δy <= δy', R + pairs of rows): 1 for all pairs of rows with that τ, -1 for those out of reach.
        entries: ((2d)²,) place of each moment in the flattened (pairs, 2R, 2R).
    """

    upper: Tensor
    lower: Tensor
    signs: Tensor
    entries: Tensor


def _places(rows: list[int], side: int, height: int) -> Tensor:
    """Where rows y of all 2R shifted maps lie, in the order (y, map), for h' = height."""
    full = height + side - 1
    return (torch.tensor(rows, dtype=torch.int64)[:, None] + torch.arange(2 * side) * full).flatten()


@functools.lru_cache(256)
def _moments_plan(side: int, height: int, device: torch.device) -> _MomentsPlan:
    borders = [(lag, row, below) for lag in range(side) for below in (0, 1) for row in range(side - 1 - lag)]
    pairs = [(offset, offset + lag) for lag in range(side) for offset in range(side - lag)]
    signs = torch.zeros(len(pairs), side + len(borders), dtype=torch.float64)
    for number, (offset, other) in enumerate(pairs):
        signs[number, other - offset] = 1
        for place, (lag, row, below) in enumerate(borders):
            # the offset reaches the rows δy … δy + h' - 1
            if lag == other - offset and (row >= offset if below else row < offset):
                signs[number, side + place] = -1
    # for (j, δy, δx) and (j', δy', δx')
    entries = torch.empty(2, side, side, 2, side, side, dtype=torch.int64)
    block = torch.arange(4 * side**2).view(2, side, 2, side)  # (j, δx), (j', δx')
    for number, (offset, other) in enumerate(pairs):
        entries[:, offset, :, :, other] = number * 4 * side**2 + block
        entries[:, other, :, :, offset] = number * 4 * side**2 + block.permute(2, 3, 0, 1)
    upper = _places([row + below * height for _, row, below in borders], side, height)
    lower = _places([row + below * height + lag for lag, row, below in borders], side, height)
    plan = (upper, lower, signs, entries.flatten())
    return _MomentsPlan(*(tensor.to(device) for tensor in plan))


def _rows_gradient(weights: Tensor, shifted: _Shifted, scratch: Scratch) -> Tensor:
    """(M, R, h, w'): the gradient in the shifted rows of the probabilities."""
    rows, side, height = shifted
    count, _, full_height, width = rows.shape
    plan = _gradient_plan(side, height, rows.device)
    weights = weights.view(count, side, side, 2, side, side)  # δy, δx, j, δy', δx'
    means = shifted.offset_sums() / shifted.positions
    constants = (weights.flatten(3) @ means.flatten(1)[:, None, :, None])[..., 0]  # (M, δy, δx)
    constants = (plan.reached @ constants)[..., None]  # (M, 1 + border rows, δx, 1)
    pairs = weights.permute(0, 1, 4, 2, 3, 5).flatten(3).flatten(1, 2)  # (M, δy δy', δx j δx')
    taps = (plan.pairs @ pairs).view(count, len(plan.reached), 2 * side - 1, side, 2 * side)

    start, stop = side - 1, max(height, side - 1)  # rows that all R vertical offsets reach
    inner = scratch.take("inner", (count, side, (stop - start) * width), torch.float64).copy_(-constants[:, 0])
    if stop > start:
        for lag in range(1 - side, side):
            # the sum over the pairs (δy, δy + lag)
            inner.baddbmm_(taps[:, 0, lag + side - 1], rows[:, :, start + lag : stop + lag].flatten(2))
    inner = inner.view(count, side, stop - start, width)
    if side == 1:
        return inner
    patches = shifted.pick(plan.near).view(count, len(plan.reached) - 1, -1, width)  # (M, border rows, τ j δx', w')
    outer = taps[:, 1:].transpose(2, 3).flatten(3) @ patches - constants[:, 1:]
    outer = outer.transpose(1, 2)  # (M, δx, border rows, w')
    grad = scratch.take("grad", (count, side, full_height, width), torch.float64)
    return torch.cat([outer[:, :, :start], inner, outer[:, :, start:]], 2, out=grad)


class _GradientPlan(NamedTuple):
    """How the gradient of a row is put together. Border rows are those that not all vertical offsets reach.

    Attributes:
        near: places of the rows τ from each border row, for all τ; any row where there is none.
        reached: (1 + border rows, R): 1 where an offset reaches the row; the first stands for all inner rows.
        pairs: ((1 + border rows) (2R - 1), R²): which pairs (δy, δy') a row has for each τ = δy' - δy.
    """

    near: Tensor
    reached: Tensor
    pairs: Tensor


@functools.lru_cache(256)
def _gradient_plan(side: int, height: int, device: torch.device) -> _GradientPlan:
    full = height + side - 1
    border = [*range(side - 1), *range(max(height, side - 1), full)]
    lags = range(1 - side, side)
    reached = torch.ones(1 + len(border), side, dtype=torch.float64)
    for number, row in enumerate(border, start=1):
        reached[number] = torch.tensor([float(0 <= row - offset < height) for offset in range(side)])
    pairs = torch.zeros(1 + len(border), len(lags), side, side, dtype=torch.float64)
    for offset in range(side):
        for other in range(side):
            pairs[:, other - offset + side - 1, offset, other] = reached[:, offset]
    near = _places([min(max(row + lag, 0), full - 1) for row in border for lag in lags], side, height)
    plan = (near, reached, pairs.flatten(2).flatten(0, 1))
    return _GradientPlan(*(tensor.to(device) for tensor in plan))


def _fold(grad: Tensor, scratch: Scratch) -> Tensor:
    count, side, height, width = grad.shape
    maps = scratch.take("folded", (count, height, width + side - 1), torch.float64).zero_()
    for offset in range(side):
        maps[:, :, offset : offset + width] += grad[:, offset]
    return maps
