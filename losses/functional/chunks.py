"""How much to work on at a time: what fits a cache on a CPU, and enough to fill the device elsewhere."""

from collections.abc import Iterator

import torch

_CPU_BYTES = 2**22
_DEVICE_BYTES = 2**28


def chunks(total: int, bytes_each: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover range(total), each of as many items as fit the working memory of the device (at least one)."""
    budget = _CPU_BYTES if device.type == "cpu" else _DEVICE_BYTES
    step = max(1, budget // max(1, bytes_each))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))
