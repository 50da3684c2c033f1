"""Bilinear upsampling at chosen pixels, its transpose, and norms of upsampled features, without upsampling the map."""

from collections.abc import Iterable

import torch
from torch import Tensor


class BilinearUpsampling:
    """Bilinear interpolation from (h, w) to (H, W), `align_corners=False`, at chosen pixels, and its transpose.

    Pixel (Y, X) is in the cell between the map's values (y, x), (y, x+1), (y+1, x) and (y+1, x+1), where the last row
    and column are repeated. With its fractions a (down) and b (right), the interpolated value is a polynomial in 1, b,
    a and ab whose coefficients depend on the cell alone. So a value at a pixel is four table look-ups, and the
    transpose of the interpolation is four additions into tables; neither creates a full-size image per map.

    Indices and fractions are quotients of integers, exact to the last digit of float64.

    Args:
        map_size: (h, w).
        image_size: (H, W); may be smaller than the map.
        device: where the pixels are.

    Attributes:
        cell: (H, W) int64, y · w + x.
        down: (H, 1) float64, a in [0, 1).
        right: (1, W) float64, b in [0, 1).

    Example:
        >>> upsampling = BilinearUpsampling((1, 2), (1, 4), torch.device("cpu"))
        >>> upsampling.cell.tolist(), upsampling.right.tolist()
        ([[0, 0, 0, 1]], [[0.0, 0.25, 0.75, 0.25]])
        >>> table = upsampling.coefficients(torch.tensor([[[1.0, 2.0]]], dtype=torch.float64))
        >>> upsampling.interpolate(table, upsampling.cell).tolist()
        [[1.0, 1.25, 1.75, 2.0]]
    """

    def __init__(self, map_size: tuple[int, int], image_size: tuple[int, int], device: torch.device) -> None:
        self.map_size = map_size
        self._row, down = _axis(map_size[0], image_size[0], device)
        self._column, right = _axis(map_size[1], image_size[1], device)
        self.cell = self._row[:, None] * map_size[1] + self._column
        self.down, self.right = down[:, None], right[None]
        self._down_right = self.down * self.right

    def coefficients(self, maps: Tensor) -> Tensor:
        """Compute the coefficients of 1, b, a and ab in each cell: (J, h, w) to (4, J · h · w)."""
        padded = repeat_border(maps)
        corner, right = padded[:, :-1, :-1], padded[:, :-1, 1:]
        below, opposite = padded[:, 1:, :-1], padded[:, 1:, 1:]
        return torch.stack([corner, right - corner, below - corner, opposite - below - right + corner]).flatten(1)

    def interpolate(self, coefficients: Tensor, index: Tensor) -> Tensor:
        """Interpolate the value of every pixel, each from one map.

        Args:
            coefficients: (4, J · h · w) float64, from `coefficients`.
            index: (H, W), j · h · w + cell, with j the index of the pixel's map.

        Returns:
            (H, W) float64.
        """
        flat = index.flatten()
        values, *others = [table.index_select(0, flat).view_as(index) for table in coefficients.unbind()]
        for other, factor in zip(others, (self.right, self.down, self._down_right), strict=True):
            values.addcmul_(other, factor)
        return values

    def pull_back(self, weights: Tensor | None, index: Tensor, num_maps: int) -> Tensor:
        """Transpose of `interpolate`: add the weight of each pixel to the four values that it is interpolated from.

        Args:
            weights: (H, W) float64; None stands for ones.
            index: (H, W), as for `interpolate`.
            num_maps: J.

        Returns:
            (J, h, w) float64. Its inner product with any J maps is the weighted sum of their interpolated values.
        """
        height, width = self.map_size
        ones = self.down.new_ones(()).expand_as(index)
        factors = (ones, self.right.expand_as(index), self.down.expand_as(index), self._down_right)
        moments = self.down.new_zeros(4, num_maps * height * width)
        for table, factor in zip(moments, factors, strict=True):
            values = factor if weights is None else factor * weights
            table.index_add_(0, index.flatten(), values.flatten())
        one, right, down, across = moments.view(4, num_maps, height, width)
        shares = self.down.new_zeros(num_maps, height + 1, width + 1)
        shares[:, :-1, :-1] = one - right - down + across
        shares[:, :-1, 1:] += right - across
        shares[:, 1:, :-1] += down - across
        shares[:, 1:, 1:] += across
        # add the repeated row and column to those that they repeat
        shares[:, -2] += shares[:, -1]
        shares[:, :, -2] += shares[:, :, -1]
        return shares[:, :-1, :-1]

    def squared_norms(self, blocks: Iterable[Tensor]) -> Tensor:
        """Compute the squared norm, over the channels, of every interpolated feature.

        The interpolated feature is a weighted sum of four neighbors, so its squared norm is a quadratic form in their
        inner products: with itself, to the right, below, and along the two diagonals.

        Args:
            blocks: (c, h, w) float64 each, together all channels of the map.

        Returns:
            (H, W) float64, at least 0.
        """
        height, width = self.map_size[0] + 1, self.map_size[1] + 1
        # distances of the neighbors in rows of w + 1 values; those that wrap around are dropped below
        offsets = {"own": 0, "right": 1, "below": width, "diagonal": width + 1}
        products = {name: self.down.new_zeros(height * width) for name in (*offsets, "antidiagonal")}
        for block in blocks:
            values = repeat_border(block).flatten(1)
            length = values.shape[1]
            for name, offset in offsets.items():
                products[name][: length - offset] += (values[:, : length - offset] * values[:, offset:]).sum(0)
            products["antidiagonal"][: length - width] += (values[:, 1 : length - width + 1] * values[:, width:]).sum(0)
        own, right, below, diagonal, antidiagonal = (product.view(height, width) for product in products.values())

        # interpolate along the rows: products within each row, and of each row with the next one
        left, column, next_column = 1 - self.right, self._column, self._column + 1
        within = left**2 * own[:, column] + self.right**2 * own[:, next_column]
        within += 2 * left * self.right * right[:, column]
        between = left**2 * below[:-1, column] + self.right**2 * below[:-1, next_column]
        between += left * self.right * (diagonal + antidiagonal)[:-1, column]
        # then along the columns
        up, row, next_row = 1 - self.down, self._row, self._row + 1
        norms = within[row] * up**2
        norms.addcmul_(within[next_row], self.down**2)
        norms.addcmul_(between[row], 2 * up * self.down)
        return norms.clamp_(min=0)  # cancellation leaves rounding errors of either sign


def repeat_border(maps: Tensor) -> Tensor:
    """Repeat the last row and column: (J, h, w) to (J, h + 1, w + 1)."""
    maps = torch.cat([maps, maps[:, -1:]], dim=1)
    return torch.cat([maps, maps[:, :, -1:]], dim=2)


def _axis(map_length: int, image_length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the lower neighbor and fraction of each pixel: centers are at (X + ½) · w / W − ½, clamped at 0."""
    doubled = 2 * image_length
    position = ((2 * torch.arange(image_length, device=device) + 1) * map_length - image_length).clamp_(min=0)
    return position // doubled, (position % doubled).double() / doubled
