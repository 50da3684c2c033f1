"""Refining images in processes of their own, while the network is busy with the next ones.

This file imports no torch, so that the processes start quickly.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from beyondpixel.experiments.inference.crf import DenseCRF

Item = TypeVar("Item")
Started = TypeVar("Started")


class Refined(NamedTuple):
    """Probabilities after the CRF, and what they cost.

    Attributes:
        probs: float32 (C, H, W).
        seconds: CPU time of the CRF on this image; it runs on one core, so on a free one that is its duration.
    """

    probs: NDArray[np.float32]
    seconds: float


class RefinementPool:
    """A process on each core that this process may use, each refining one image at a time.

    Args:
        crf: what is done to each image.
        workers: number of processes; as many as cores if None.

    Example:
        >>> with RefinementPool(DenseCRF(steps=1), workers=1) as pool:
        ...     refined = pool.submit(np.zeros((4, 4, 3), np.uint8), np.full((2, 4, 4), 0.5)).result()
        >>> refined.probs.shape
        (2, 4, 4)
    """

    def __init__(self, crf: DenseCRF, workers: int | None = None) -> None:
        self.crf = crf
        self.workers = workers or available_cores()
        # forked copies of a process that holds threads or a GPU may hang
        self._processes = ProcessPoolExecutor(self.workers, mp_context=multiprocessing.get_context("spawn"))

    def submit(self, image: NDArray[np.uint8], probs: NDArray[np.floating[Any]]) -> Future[Refined]:
        """Start on an image, uint8 (H, W, 3), and its probabilities, (C, H, W)."""
        return self._processes.submit(_refine, self.crf, image, probs)

    def close(self) -> None:
        """End the processes; what has not begun is dropped."""
        self._processes.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def available_cores() -> int:
    """Cores that this process may use, as a cluster's scheduler set it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def started_ahead(items: Iterable[Item], start: Callable[[Item], Started], *, ahead: int) -> Iterator[Started]:
    """What `start` makes of each item, in order, with up to `ahead` further ones begun already.

    Example:
        >>> begun = []
        >>> results = started_ahead("abcde", lambda item: begun.append(item) or item.upper(), ahead=2)
        >>> next(results), begun
        ('A', ['a', 'b', 'c'])
    """
    waiting: deque[Started] = deque()
    for item in items:
        waiting.append(start(item))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def _refine(crf: DenseCRF, image: NDArray[np.uint8], probs: NDArray[np.floating[Any]]) -> Refined:
    started = time.process_time()
    return Refined(crf(image, probs), time.process_time() - started)
