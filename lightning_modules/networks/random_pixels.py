"""Random selection of one pixel per class, in a batch that may be split over several processes."""

import torch
from torch import Tensor

from beyondpixel.lightning_modules.networks.distributed import process_rank_and_count, sum_over_processes


def keep_random_pixels(target: Tensor, draws: Tensor, *, ignore_index: int) -> Tensor:
    """Set all pixels to void except one per class, drawn uniformly from the batches of all processes.

    The pixels of a class are numbered over the images in order, process 0 first, so n processes pick the same pixel as
    one process with the concatenated batch. Every process must call this, with the same draws.

    Args:
        target: (N, H, W) integer labels.
        draws: (K,) float64 in [0, 1): which pixel, as a fraction of the class's pixels; negative for classes to skip.
        ignore_index: the void label.

    Example:
        >>> target = torch.tensor([[[0, 0, 0, 1]]])
        >>> keep_random_pixels(target, torch.tensor([0.5, -1]).double(), ignore_index=255)
        tensor([[[255,   0, 255, 255]]])
    """
    rank, processes = process_rank_and_count()
    shares = draws.tolist()
    wanted = [k for k, share in enumerate(shares) if share >= 0 and k != ignore_index]
    positions = {k: (target == k).flatten().nonzero()[:, 0] for k in wanted}
    counts = torch.zeros(processes, len(shares), dtype=torch.int64, device=target.device)
    for k in wanted:
        counts[rank, k] = len(positions[k])
    (counts,) = sum_over_processes(counts)
    before, total = counts[:rank].sum(0).tolist(), counts.sum(0).tolist()
    kept = torch.full_like(target, ignore_index, dtype=torch.int64)
    for k in wanted:
        number = int(shares[k] * total[k]) - before[k]
        if 0 <= number < len(positions[k]):
            kept.view(-1)[positions[k][number]] = k
    return kept
