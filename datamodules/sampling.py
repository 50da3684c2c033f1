"""Samplers: the order of the samples, and their distribution to processes.

Both samplers are `DistributedSampler`s, even with one process: Lightning replaces every other sampler in a distributed
run, which would lose the epoch and repeat evaluation images.
"""

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset, DistributedSampler


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Key of a sample, from a sampler to a data set.

    Attributes:
        index: Index in the split.
        epoch: Determines the augmentation, together with the index and the data set's seed.
        void: Only fills up a batch: its mask becomes void everywhere, so that it does not count.
    """

    index: int
    epoch: int = 0
    void: bool = False


class TrainingSampler(DistributedSampler[Any]):
    """A new random order in each epoch, in whole global batches.

    Step t over all processes takes the same samples for any number of processes, as long as `batch_size * world_size`
    stays the same. Samples that do not fill a global batch are dropped in that epoch.

    Args:
        dataset: The data set to sample; only its length matters.
        batch_size: Samples per step and process.
        rank: Rank of this process.
        world_size: Number of processes.
        seed: Seed of the orders.

    >>> sampler = TrainingSampler(range(5), batch_size=2, seed=1)
    >>> sampler.set_epoch(3)
    >>> [(key.epoch, key.index) for key in sampler]
    [(3, 0), (3, 4), (3, 2), (3, 3)]
    """

    def __init__(self, dataset: Sized, *, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0) -> None:
        super().__init__(cast("Dataset[Any]", dataset), num_replicas=world_size, rank=rank, seed=seed, drop_last=True)
        self.batches = len(dataset) // (batch_size * world_size)
        self.num_samples = self.batches * batch_size
        self.total_size = self.num_samples * world_size
        self._size = len(dataset)
        self._batch_size = batch_size
        self._first_batch = 0

    def start_at(self, batch: int) -> None:
        """Skip the batches before `batch` in the next pass, and only in that one."""
        self._first_batch = batch

    def __iter__(self) -> Iterator[SampleKey]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self._size)
        mine = order[: self.total_size][self.rank :: self.num_replicas]
        first, self._first_batch = self._first_batch * self._batch_size, 0
        return iter([SampleKey(int(index), self.epoch) for index in mine[first:]])

    def __len__(self) -> int:
        return self.num_samples


class EvaluationSampler(DistributedSampler[Any]):
    """Every sample once, in order.

    With several processes, some get one sample fewer. If all must run the same number of steps (validation inside a
    training run, in which DistributedDataParallel synchronizes in each step), those with fewer get a void sample.

    Args:
        dataset: The data set to sample; only its length matters.
        rank: Rank of this process.
        world_size: Number of processes.
        fill: Whether to pad with void samples, so that all processes have the same number.

    >>> [list(EvaluationSampler(range(3), rank=rank, world_size=2, fill=False)) for rank in (0, 1)]
    [[SampleKey(index=0, epoch=0, void=False), SampleKey(index=2, epoch=0, void=False)], \
[SampleKey(index=1, epoch=0, void=False)]]
    """

    def __init__(self, dataset: Sized, *, rank: int = 0, world_size: int = 1, fill: bool = True) -> None:
        super().__init__(cast("Dataset[Any]", dataset), num_replicas=world_size, rank=rank, shuffle=False)
        self._keys = [SampleKey(index) for index in range(rank, len(dataset), world_size)]
        if fill and len(self._keys) < self.num_samples:
            self._keys.append(SampleKey(0, void=True))

    def __iter__(self) -> Iterator[SampleKey]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
