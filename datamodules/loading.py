"""Augmentation and collation of samples, and loaders that resume and report failures."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch._C import _error_if_any_worker_fails
from torch.utils.data import DataLoader, Dataset

from beyondpixel.datamodules.datasets.base import Sample, SegmentationDataset
from beyondpixel.datamodules.datasets.errors import DataError, data_error
from beyondpixel.datamodules.datasets.labels import IGNORE_INDEX
from beyondpixel.datamodules.normalization import Batch, Normalization
from beyondpixel.datamodules.sampling import SampleKey, TrainingSampler
from beyondpixel.datamodules.transforms import TrainingTransform, pad

EXIT_TIMEOUT_S = 10.0  # on a busy machine, the end of a killed process with much memory takes seconds


@dataclass(eq=False)
class AugmentedDataset(Dataset["Sample | str"]):
    """A split with its augmentation, which depends on the seed, the epoch and the index alone.

    In place of a sample that cannot be used it returns the error's message: torch adds a traceback to exceptions that
    workers raise.

    Args:
        dataset: The split.
        augment: The transform of each sample; None for no transform.
        seed: The seed of the augmentation.
    """

    dataset: SegmentationDataset
    augment: TrainingTransform | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | SampleKey) -> Sample | str:
        key = key if isinstance(key, SampleKey) else SampleKey(key)
        try:
            sample = self.dataset[key.index]
            if self.augment is not None:
                seed = np.random.SeedSequence([self.seed, key.epoch, key.index]).generate_state(1)[0]
                sample = self.augment(sample, int(seed))
        except DataError as error:
            return str(error)
        except Exception as error:
            error.add_note(f"This happened with sample {self.dataset.ids[key.index]!r}.")
            raise
        if key.void and sample.mask is not None:
            return Sample(sample.image, np.full_like(sample.mask, IGNORE_INDEX), sample.id)
        return sample


@dataclass(frozen=True)
class Collate:
    """Stack samples into a batch; smaller ones are padded at the right and bottom with the mean color and void.

    Args:
        fill: Color of the padding, RGB 0-255.
        normalize: Normalize here; None leaves that to the device (uint8 image and mask).
    """

    fill: tuple[int, ...]
    normalize: Normalization | None

    def __call__(self, samples: Sequence[Sample | str]) -> Batch | str:
        """Make one batch, images channels last in memory; or return the first error among the samples."""
        if failures := [sample for sample in samples if isinstance(sample, str)]:
            return failures[0]
        good = cast("Sequence[Sample]", samples)
        height, width = np.max([sample.image.shape[:2] for sample in good], axis=0).tolist()
        size = height, width
        images = np.stack([pad(sample.image, size, self.fill) for sample in good])
        batch: Batch = {"image": torch.from_numpy(images).permute(0, 3, 1, 2), "id": [sample.id for sample in good]}
        masks = [pad(sample.mask, size, (IGNORE_INDEX,)) for sample in good if sample.mask is not None]
        if masks:
            batch["mask"] = torch.from_numpy(np.stack(masks))
        return batch if self.normalize is None else self.normalize(batch)


class SampleLoader(DataLoader["Sample | str"]):
    """A `DataLoader` of an `AugmentedDataset` that raises failures as one `DataError` with the names of the samples."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        number = self._begin()
        with _raise_if_worker_dies(self.num_workers):
            batches = super().__iter__()
        while True:
            try:
                with _raise_if_worker_dies(self.num_workers):
                    batch = cast("Batch | str", next(batches))
            except StopIteration:
                break
            except RuntimeError as error:
                # torch's error if a worker was killed, or returned nothing for `timeout` seconds
                if not str(error).startswith("DataLoader"):
                    raise
                raise self._workers_stopped(number, str(error)) from None
            if isinstance(batch, str):
                raise DataError(batch)
            number += 1
            yield batch

    def _begin(self) -> int:
        """Return the index of the first batch."""
        return 0

    def _workers_stopped(self, number: int, why: str) -> DataError:
        keys: list[Any] = next(islice(iter(cast("Any", self.batch_sampler)), number, None), [])
        ids = cast("AugmentedDataset", self.dataset).dataset.ids
        return data_error(
            f"The data workers stopped: {why.strip()}. The training waits for batch {number}, with these samples",
            [ids[key.index if isinstance(key, SampleKey) else key] for key in keys],
            expected=f"a batch within {self.timeout:g} seconds (--data.timeout)",
            remedy="check that these files can be read, and that the machine has memory left; --data.num_workers 0 "
            "reads without workers",
        )


@contextmanager
def _raise_if_worker_dies(workers: int) -> Iterator[None]:
    """Raise an error for a dead worker here, where the process waits for a batch, and only here.

    torch's own signal handler would raise at any point of the process, such as in the middle of a training step.
    """
    handled = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    if not (workers and handled):
        yield
        return
    signal.signal(signal.SIGCHLD, lambda number, frame: _error_if_any_worker_fails())
    try:
        _error_if_any_worker_fails()  # workers that died meanwhile
        yield
    except (OSError, EOFError):
        # a worker died before it passed on its batch's memory: its connections close shortly before it counts as dead
        end = time.monotonic() + EXIT_TIMEOUT_S
        while time.monotonic() < end:
            _error_if_any_worker_fails()
            time.sleep(0.01)
        raise
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class ResumableLoader(SampleLoader):
    """A training loader that can resume in the middle of an epoch.

    It can be used as any loader: each full pass is an epoch, `state_dict` returns the position in the pass, and after
    `load_state_dict` the next pass starts there. `len` is that of a whole epoch.

    Args:
        dataset: The training data.
        batches_done: Returns the number of finished batches of the current epoch, called when a pass begins; None
            counts the returned batches instead.
        **arguments: As for `DataLoader`.
    """

    def __init__(
        self, dataset: Dataset[Sample | str], *, batches_done: Callable[[], int] | None = None, **arguments: Any
    ) -> None:
        super().__init__(dataset, **arguments)
        self._batches_done = batches_done
        self._loaded: dict[str, int] | None = None
        self._batch = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator starts no worker before the first batch is requested. Lightning creates its iterator before it
        # sets the epoch and restores its counters; workers would already have fetched the wrong samples.
        for batch in super().__iter__():
            self._batch += 1
            yield batch
        if isinstance(self.sampler, TrainingSampler):
            self.sampler.set_epoch(self.sampler.epoch + 1)
            self._batch = 0

    def _begin(self) -> int:
        if not isinstance(self.sampler, TrainingSampler):
            return 0
        loaded, self._loaded = self._loaded, None
        if self._batches_done is not None:
            done = self._batches_done()
        else:
            done = loaded["batch"] if loaded is not None and loaded["epoch"] == self.sampler.epoch else 0
        self._batch = done if done < self.sampler.batches else 0
        self.sampler.start_at(self._batch)
        return self._batch

    def state_dict(self) -> dict[str, int]:
        """Return `epoch`, and `batch`, the number of its batches returned so far."""
        epoch = self.sampler.epoch if isinstance(self.sampler, TrainingSampler) else 0
        return {"epoch": epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next pass at the position of `state`."""
        self._loaded = state
        if isinstance(self.sampler, TrainingSampler):
            self.sampler.set_epoch(state["epoch"])


def available_cores() -> int:
    """Return the number of cores available to this process where the system reports it, else of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def default_workers(processes: int = 1) -> int:
    """Return the workers per loader: 0 on a small machine, where they would compete with the model, else up to 8.

    Args:
        processes: Training processes that share this machine.
    """
    available = available_cores() // processes
    return 0 if available <= 2 else min(8, available - 1)


def single_threaded(worker: int) -> None:
    """Keep OpenCV from starting threads in every worker."""
    cv2.setNumThreads(0)
