"""What all data modules share: loaders, augmentation, normalisation and resumption."""

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerStatus
from torch.utils.data import DataLoader

from beyondpixel.datamodules.datasets.errors import data_error
from beyondpixel.datamodules.datasets.labels import IGNORE_INDEX
from beyondpixel.datamodules.datasets.pictures import picture_samples
from beyondpixel.datamodules.datasets.samples import CachedSamples, MappedSamples, Sample, Samples
from beyondpixel.datamodules.datasets.skipping import without_faults
from beyondpixel.datamodules.loading import (
    Collate,
    ResumableLoader,
    SegmentationDataset,
    default_workers,
    single_threaded,
)
from beyondpixel.datamodules.normalization import Batch, Normalization
from beyondpixel.datamodules.sampling import EvaluationSampler, TrainingSampler
from beyondpixel.datamodules.transforms import Resize, Size, TrainingTransform

Value = TypeVar("Value")
Triple = tuple[float, float, float]
Colour = tuple[int, int, int]


class SegmentationDataModule(LightningDataModule, ABC):
    """Base of all data modules; a subclass says what its data set is.

    Batches are dicts: `image` float32 (N, 3, H, W), normalised; `mask` int64 (N, H, W) with 255 where there is no
    label (absent where there is no truth); `id`, a list of str. Inside a `Trainer` the loaders hand over 8-bit batches,
    which this module normalises on the device; outside of one they normalise by themselves.

    A sample's augmentation depends on (seed, epoch, index) alone, and the order of the samples on (seed, epoch). So the
    batches are the same with any number of workers, on any number of processes (the union of what they see) and after
    a resume in the middle of an epoch. No flag of the `Trainer` is needed for that.

    A subclass sets `dataset_name`, `splits`, `class_names`, `palette`, `mean`, `std`, and implements `load_split`.
    `classes_excluded_from_mean` names classes that are trained and scored, but that publications leave out of their mean: the
    mean over the others is then logged as well, as `mIoU_<number of the others>`.

    Args:
        batch_size: Images per training step and process.
        eval_batch_size: Images per evaluation step and process.
        num_workers: Worker processes per loader; None chooses: none on up to two cores, otherwise up to eight.
        seed: Decides the order and the augmentation of the training images.
        crop_size: Side, or height and width, of the training crops; None crops nothing away where all images have one
            size.
        scales: Lowest and highest factor of the random rescaling of training images.
        scale_step: Distance of the factors, such as 0.25 for 0.5, 0.75, 1, ...; None takes any factor in the range.
        flip: Mirror every other training image, on average.
        image_size: Height and width to which everything is resized first, truth and evaluation included; None works at
            the images' own sizes.
        cache: "ram" keeps all decoded images in memory, once per training process; None reads them each time.
        on_error: "raise" stops at the first bad file and lists all of them; "skip" reads all training files beforehand
            and trains without the bad ones, which are written to `skipped_files.txt` in the run's folder. Evaluation
            never skips.
        predict_path: An image, or a folder of images, to predict; None predicts the test images.
    """

    dataset_name: ClassVar[str]
    # whether all images have one size, so that evaluation batches and uncropped training batches can be stacked
    fixed_size: ClassVar[bool] = True

    splits: tuple[str, ...]
    class_names: list[str]
    palette: list[Colour]
    mean: Triple
    std: Triple
    classes_excluded_from_mean: tuple[str, ...] = ()
    ignore_index: int = IGNORE_INDEX

    train_split: str = "train"
    val_split: str | None = "val"
    test_split: str = "test"

    def __init__(
        self,
        *,
        batch_size: int = 8,
        eval_batch_size: int = 1,
        num_workers: int | None = None,
        seed: int = 0,
        crop_size: int | tuple[int, int] | None = None,
        scales: tuple[float, float] = (1.0, 1.0),
        scale_step: float | None = None,
        flip: bool = True,
        image_size: tuple[int, int] | None = None,
        cache: Literal["ram"] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        predict_path: str | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = _positive("batch_size", batch_size)
        self.eval_batch_size = _positive("eval_batch_size", eval_batch_size)
        self.num_workers = num_workers
        self.seed = seed
        self.crop_size: Size | None = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        self.scales = _range("scales", scales)
        self.scale_step = scale_step
        self.flip = flip
        self.image_size = image_size
        self.cache = _one_of("cache", cache, ("ram", None))
        self.on_error = _one_of("on_error", on_error, ("raise", "skip"))
        self.predict_path = predict_path
        for name, size in (("crop_size", self.crop_size), ("image_size", image_size)):
            if size is not None and min(size) < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        if scale_step is not None and scale_step <= 0:
            raise ValueError(f"scale_step must be positive, or None for any factor in scales, got {scale_step}")
        self._samples: dict[str, Samples] = {}

    @property
    def num_classes(self) -> int:
        """Number of classes, void not counted."""
        return len(self.class_names)

    @cached_property
    def normalize(self) -> Normalization:
        """What turns 8-bit batches into the float batches that models take."""
        return Normalization(self.mean, self.std)

    @abstractmethod
    def load_split(self, split: str) -> Samples:
        """Find the samples of a split.

        Raises:
            DataError: The data is not there, or not complete.
        """

    def samples(self, split: str) -> Samples:
        """The raw samples of a split: uint8 images and masks at `image_size`, without augmentation.

        Args:
            split: One of `splits`.
        """
        if split not in self._samples:
            if split not in self.splits:
                raise ValueError(f"{self.dataset_name} has no split {split!r}; it has {', '.join(self.splits)}")
            samples = self.load_split(split)
            if self.on_error == "skip" and split == self.train_split:
                samples = without_faults(samples, name=self.dataset_name, listing=self._skip_list())
            else:
                samples.require_files()
            self._samples[split] = self._prepared(samples)
        return self._samples[split]

    def setup(self, stage: str | None = None) -> None:
        """Find the files that the stage needs, so that a missing one is noticed before anything is computed."""
        wanted: dict[str, list[str | None]] = {
            "fit": [self.train_split, self.val_split],
            "validate": [self.val_split],
            "test": [self.test_split],
            "predict": [None if self.predict_path else self.test_split],
        }
        stages = wanted if stage is None else {stage: wanted[stage]}
        for split in dict.fromkeys(split for splits in stages.values() for split in splits if split is not None):
            self.samples(split)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, augmented, in whole batches."""
        samples = self.samples(self.train_split)
        rank, world_size = self._process()
        if len(samples) < self.batch_size * world_size:
            raise data_error(
                f"{self.dataset_name}: split {self.train_split!r} has {len(samples)} images, which fill no batch "
                f"(batch_size {self.batch_size} on {world_size} process{'es' * (world_size > 1)})",
                [],
                expected="at least one whole batch",
                remedy=f"lower batch_size to {max(1, len(samples) // world_size)} or below",
            )
        transform = TrainingTransform(
            crop=self._crop(samples), scales=self.scales, scale_step=self.scale_step, flip=self.flip, fill=self._fill()
        )
        if isinstance(samples, CachedSamples):
            samples.fill()
        sampler = TrainingSampler(samples, batch_size=self.batch_size, rank=rank, world_size=world_size, seed=self.seed)
        return ResumableLoader(
            SegmentationDataset(samples, augment=transform, seed=self.seed),
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=True,
            batches_done=self._batches_done if self._is_running() else None,
            **self._loading(),
        )

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """All validation images in order; an empty list where no images are held out."""
        return [] if self.val_split is None else self._evaluation_loader(self.samples(self.val_split))

    def test_dataloader(self) -> DataLoader[Sample]:
        """All test images in order."""
        return self._evaluation_loader(self.samples(self.test_split))

    def predict_dataloader(self) -> DataLoader[Sample]:
        """The images of `predict_path`, each at its own size, or the test images, without truth."""
        if self.predict_path is None:
            return self._evaluation_loader(MappedSamples(self.samples(self.test_split), _without_truth), fill=False)
        samples = self._resized(picture_samples(Path(self.predict_path)))
        return self._evaluation_loader(samples, batch_size=1, fill=False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise on the device, where it is nearly free, having moved a quarter of the bytes."""
        batch = self.normalize(batch)
        if self.trainer is not None:
            # with 16-true and the like, Lightning converted the inputs before they were floats
            batch["image"] = self.trainer.precision_plugin.convert_input(batch["image"])
        return batch

    def _skip_list(self) -> Path | None:
        folder = Path() if self.trainer is None else Path(self.trainer.default_root_dir)
        return folder / "skipped_files.txt" if self._process()[0] == 0 else None

    def _prepared(self, samples: Samples) -> Samples:
        samples = self._resized(samples)
        return CachedSamples(samples) if self.cache == "ram" else samples

    def _resized(self, samples: Samples) -> Samples:
        return samples if self.image_size is None else MappedSamples(samples, Resize(self.image_size))

    def _crop(self, samples: Samples) -> Size:
        if self.crop_size is not None:
            return self.crop_size
        if not self.fixed_size and self.image_size is None:
            raise ValueError(
                f"{self.dataset_name} has images of different sizes, so training needs a crop_size, such as 513"
            )
        height, width = samples[0].image.shape[:2]
        return height, width

    def _fill(self) -> tuple[int, ...]:
        return tuple(round(255 * value) for value in self.mean)

    def _evaluation_loader(
        self, samples: Samples, *, batch_size: int | None = None, fill: bool = True
    ) -> DataLoader[Sample]:
        if isinstance(samples, CachedSamples):
            samples.fill()
        rank, world_size = self._process()
        return DataLoader(
            SegmentationDataset(samples),
            batch_size=batch_size or self.eval_batch_size,
            sampler=EvaluationSampler(samples, rank=rank, world_size=world_size, fill=fill),
            **self._loading(),
        )

    def _loading(self) -> dict[str, Any]:
        workers = self.num_workers
        if workers is None:
            workers = default_workers(1 if self.trainer is None else self.trainer.num_devices)
        return {
            "num_workers": workers,
            "collate_fn": Collate(self._fill(), None if self._is_running() else self.normalize),
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": workers > 0,
            "prefetch_factor": 4 if workers else None,
            "worker_init_fn": single_threaded,
        }

    def _process(self) -> tuple[int, int]:
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _is_running(self) -> bool:
        """Whether a Trainer asks; one that has finished stays attached, but then a plain loop asks."""
        return self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING

    def _batches_done(self) -> int:
        # Lightning's counter rather than the loader's own: a batch that was fetched but not finished when the run was
        # interrupted is done again
        assert self.trainer is not None
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)


def _without_truth(sample: Sample) -> Sample:
    return Sample(sample.image, None, sample.id)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def _range(name: str, value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if not 0 < low <= high:
        raise ValueError(f"{name} must be the lowest and the highest factor, both positive, got {value}")
    return low, high


def _one_of(name: str, value: Value, allowed: tuple[Value, ...]) -> Value:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value
