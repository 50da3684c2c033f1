"""Edges of label maps and their dilation, by operations whose cost does not depend on the number of classes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def beside_other_label(labels: Tensor, *, image_border: bool) -> Tensor:
    """Whether one of a pixel's eight neighbors has another label.

    Args:
        labels: (N, H, W) integers of at least 0.
        image_border: whether what lies outside of the image has another label.

    Returns:
        (N, H, W) bool.

    Example:
        >>> beside_other_label(torch.tensor([[[3, 3, 3, 5, 5]]]), image_border=False).int().tolist()
        [[[0, 0, 1, 1, 0]]]
    """
    labels = labels.int()
    outside = int(torch.iinfo(labels.dtype).max)
    highest = _extremum(torch.maximum, labels, radius=1, outside=outside if image_border else -1)
    lowest = _extremum(torch.minimum, labels, radius=1, outside=outside)
    return highest != lowest


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Whether a pixel within the square of 2·radius + 1 pixels around each pixel is set: (N, H, W) bool to bool.

    With ``near = beside_other_label(labels)``, ``dilate(near, r - 1)`` is where another label is at most r away (in
    the chessboard metric): a shortest way there meets the first change of labels after at most r - 1 steps.

    Example:
        >>> dilate(torch.tensor([[[0, 0, 0, 1, 0]]]) == 1, radius=2).int().tolist()
        [[[0, 1, 1, 1, 1]]]
    """
    return _extremum(torch.maximum, mask.to(torch.uint8), radius=radius, outside=0).bool()


def dilate_bits(bits: Tensor, radius: float) -> Tensor:
    """Unite the bits of all pixels whose centers are at most ``radius`` away (a disk, Euclidean).

    A bit a class dilates the sets of all classes at once.

    Args:
        bits: (N, H, W) integers.
        radius: in pixels.

    Example:
        >>> dilate_bits(torch.tensor([[[1, 0, 0, 2]]]), radius=2).tolist()
        [[[1, 3, 3, 2]]]
    """
    reach = int(radius)
    height, width = bits.shape[-2:]
    wide = F.pad(bits, (reach, reach))
    rows = [bits]  # united over -w..w columns, for each w
    for offset in range(1, reach + 1):
        left, right = wide[..., reach - offset :][..., :width], wide[..., reach + offset :][..., :width]
        rows.append(rows[-1] | left | right)
    united = rows[reach].clone()
    for offset in range(1, min(reach, height - 1) + 1):
        row = rows[int((radius**2 - offset**2) ** 0.5)]
        united[:, offset:] |= row[:, :-offset]
        united[:, :-offset] |= row[:, offset:]
    return united


def _extremum(pick: Callable[[Tensor, Tensor], Tensor], values: Tensor, *, radius: int, outside: int) -> Tensor:
    """Highest or lowest value in squares of 2·radius + 1 pixels, by doubling: a square of 25 takes 5 + 5 steps."""
    for dim, padding in ((-1, (radius, radius)), (-2, (0, 0, radius, radius))):
        values = F.pad(values, padding, value=outside)
        covered = 1
        while covered < 2 * radius + 1:
            step = min(covered, 2 * radius + 1 - covered)
            length = values.shape[dim] - step
            values = pick(values.narrow(dim, 0, length), values.narrow(dim, step, length))
            covered += step
    return values
