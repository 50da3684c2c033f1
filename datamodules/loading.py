"""From samples to batches: the torch data set, the collation and a loader that can resume."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict, cast

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from beyondpixel.datamodules.datasets.labels import IGNORE_INDEX
from beyondpixel.datamodules.datasets.samples import Sample, Samples
from beyondpixel.datamodules.normalization import Batch, Normalization
from beyondpixel.datamodules.sampling import SampleKey, TrainingSampler
from beyondpixel.datamodules.transforms import Augmentation, pad


class SegmentationDataset(Dataset[Sample]):
    """A split with its augmentation, which depends on the seed, the epoch and the index and on nothing else.

    Args:
        samples: The split.
        augment: What happens to each sample; None leaves it as it is.
        seed: The seed of the augmentation.
    """

    def __init__(self, samples: Samples, *, augment: Augmentation | None = None, seed: int = 0) -> None:
        self.samples = samples
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        key = key if isinstance(key, SampleKey) else SampleKey(key)
        sample = self.samples[key.index]
        if self.augment is not None:
            seed = np.random.SeedSequence([self.seed, key.epoch, key.index]).generate_state(1)[0]
            sample = self.augment(sample, int(seed))
        if key.void and sample.mask is not None:
            return Sample(sample.image, np.full_like(sample.mask, IGNORE_INDEX), sample.id)
        return sample


class Collate:
    """Stack samples to a batch; smaller ones are padded at the right and bottom with the mean colour and void.

    Args:
        fill: Colour of the padding, RGB 0-255.
        normalize: Normalise here; None leaves that to the device (uint8 image and mask).
    """

    def __init__(self, fill: tuple[int, ...], normalize: Normalization | None) -> None:
        self.fill = fill
        self.normalize = normalize

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make one batch, images channels last in memory."""
        size = max(sample.image.shape[0] for sample in samples), max(sample.image.shape[1] for sample in samples)
        images = np.stack([pad(sample.image, size, self.fill) for sample in samples])
        batch: Batch = {"image": torch.from_numpy(images).permute(0, 3, 1, 2), "id": [sample.id for sample in samples]}
        masks = [pad(sample.mask, size, (IGNORE_INDEX,)) for sample in samples if sample.mask is not None]
        if masks:
            batch["mask"] = torch.from_numpy(np.stack(masks))
        return batch if self.normalize is None else self.normalize(batch)


class LoaderState(TypedDict):
    """Where a pass over the training data stands."""

    epoch: int
    batch: int


class ResumableLoader(DataLoader[Sample]):
    """A training loader that continues in the middle of an epoch.

    It may be used as any loader: each full pass is an epoch, `state_dict` says where the pass stands, and after
    `load_state_dict` the next pass begins there. `len` is that of a whole epoch.

    Args:
        dataset: The training data.
        batches_done: How many batches of the current epoch are finished, asked when a pass begins; None counts the
            batches handed out instead.
        **arguments: As for `DataLoader`.
    """

    def __init__(
        self, dataset: Dataset[Sample], *, batches_done: Callable[[], int] | None = None, **arguments: Any
    ) -> None:
        super().__init__(dataset, **arguments)
        self._batches_done = batches_done
        self._loaded: LoaderState | None = None
        self._batch = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Being a generator, this starts no worker before the first batch is asked for. Lightning makes its iterator
        # before it sets the epoch and restores its counters, and workers would by then have fetched the wrong samples.
        if isinstance(self.sampler, TrainingSampler):
            self._batch = self._first_batch(self.sampler)
            self.sampler.start_at(self._batch)
        for batch in super().__iter__():
            self._batch += 1
            yield cast("Batch", batch)
        if isinstance(self.sampler, TrainingSampler):
            self.sampler.set_epoch(self.sampler.epoch + 1)
            self._batch = 0

    def _first_batch(self, sampler: TrainingSampler) -> int:
        loaded, self._loaded = self._loaded, None
        if self._batches_done is not None:
            done = self._batches_done()
        else:
            done = loaded["batch"] if loaded is not None and loaded["epoch"] == sampler.epoch else 0
        return done if done < sampler.batches else 0

    def state_dict(self) -> LoaderState:
        """The epoch and the number of its batches that were handed out."""
        epoch = self.sampler.epoch if isinstance(self.sampler, TrainingSampler) else 0
        return {"epoch": epoch, "batch": self._batch}

    def load_state_dict(self, state: LoaderState) -> None:
        """Begin the next pass where `state` was taken."""
        self._loaded = state
        if isinstance(self.sampler, TrainingSampler):
            self.sampler.set_epoch(state["epoch"])


def default_workers(processes: int = 1) -> int:
    """Worker processes per loader: none on a small machine, where they would take the model's cores, else up to 8.

    Args:
        processes: Training processes that share this machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    available = cores // processes
    return 0 if available <= 2 else min(8, available - 1)


def single_threaded(worker: int) -> None:
    """Keep OpenCV from starting threads in every worker."""
    cv2.setNumThreads(0)
