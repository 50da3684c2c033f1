"""Memory for a gradient as large as the scores."""

import ctypes
import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor

_PAGE = 2**21
_MADV_HUGEPAGE = 14


def empty_gradient(scores: Tensor) -> Tensor:
    """Contiguous room of the shape, dtype and device of the scores.

    The system hands out fresh memory page by page as it is first written, which on a CPU takes as long as computing
    what is written. Where Linux offers pages of 2 MiB on request, they are asked for: 512 times fewer to hand out.
    """
    grad = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    advise = _madvise()
    if advise is not None and grad.device.type == "cpu":
        start = -(-grad.data_ptr() // _PAGE) * _PAGE
        stop = (grad.data_ptr() + grad.nbytes) // _PAGE * _PAGE
        if stop > start:
            advise(start, stop - start, _MADV_HUGEPAGE)  # a wish: nothing is lost where it is refused
    return grad


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise
