"""Sums over the processes of a distributed run."""

import torch
from torch import Tensor
from torch import distributed as dist


def process_rank_and_count() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) outside a distributed run.

    Example:
        >>> process_rank_and_count()
        (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_processes(*values: Tensor) -> tuple[Tensor, ...]:
    """Sum each tensor over all processes in one collective call; every process gets the same bits.

    Args:
        values: tensors of one dtype and device, with the same shapes on every process; not modified.

    Returns:
        The sums, in the same order.

    Example:
        >>> sum_over_processes(torch.tensor([1.0, 2.0]), torch.tensor(3.0))
        (tensor([1., 2.]), tensor(3.))
    """
    if process_rank_and_count()[1] == 1:
        return values
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat)
    parts = torch.split(flat, [value.numel() for value in values])
    return tuple(part.view_as(value) for part, value in zip(parts, values, strict=True))
