"""One random pixel of a class, and its upsampled feature, in a batch that several processes may share."""

import torch
from torch import Tensor

from beyondpixel.lightning_modules.networks.bilinear_cells import BilinearCells
from beyondpixel.lightning_modules.networks.process_sums import process_rank_and_count, sum_over_processes


def random_pixel_features(features: Tensor, target: Tensor, draws: Tensor) -> Tensor:
    """Upsampled feature of one pixel of each class, drawn uniformly from the batches of all processes.

    The pixels of a class are numbered through the images in order, of process 0 first. So n processes pick the pixel
    that one process picks from the concatenated batch. Every process must call this, with the same draws.

    Args:
        features: (N, C, h, w), this process's.
        target: (N, H, W) integer labels.
        draws: (K,) float64 in [0, 1): which pixel, as a share of all there are; negative for classes not wanted,
            which a class that is the void label must be.

    Returns:
        (K, C) float64, zeros for classes that are not wanted or have no pixels.

    Example:
        >>> target = torch.tensor([[[0, 0, 0, 1]]])
        >>> features = torch.tensor([10.0, 11, 12, 13]).view(1, 1, 1, 4)
        >>> random_pixel_features(features, target, torch.tensor([0.5, -1]).double())
        tensor([[11.],
                [ 0.]], dtype=torch.float64)
    """
    num_classes, shares = len(draws), draws.tolist()
    rank, processes = process_rank_and_count()
    wanted = [k for k in range(num_classes) if shares[k] >= 0]
    positions = {k: (target == k).flatten().nonzero()[:, 0] for k in wanted}
    counts = torch.zeros(processes, num_classes, dtype=torch.int64, device=features.device)
    for k in wanted:
        counts[rank, k] = len(positions[k])
    (counts,) = sum_over_processes(counts)
    picked = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    before, total = counts[:rank].sum(0).tolist(), counts.sum(0).tolist()
    for k in wanted:
        number = int(shares[k] * total[k]) - before[k]
        if 0 <= number < len(positions[k]):
            picked[k] = _feature_at(features, target, int(positions[k][number]))
    (picked,) = sum_over_processes(picked)
    return picked


def _feature_at(features: Tensor, target: Tensor, position: int) -> Tensor:
    """Upsampled feature (C,) of the pixel at the position in the flattened target."""
    height, width = features.shape[2:]
    image, pixel = divmod(position, target.shape[1] * target.shape[2])
    cells = BilinearCells((height, width), (target.shape[1], target.shape[2]), features.device)
    row, column = divmod(pixel, target.shape[2])
    share = torch.zeros_like(cells.cell, dtype=torch.float64)
    share[row, column] = 1
    return (features[image].double() * cells.pull_back(share, cells.cell, 1)).sum((1, 2))
