"""Base of all data modules: splits, loaders, augmentation, normalization and resumption."""

from abc import ABC, abstractmethod
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerStatus

from beyondpixel.datamodules.datasets.base import (
    CachedDataset,
    MappedDataset,
    Sample,
    SegmentationDataset,
    without_faults,
)
from beyondpixel.datamodules.datasets.errors import data_error
from beyondpixel.datamodules.datasets.images import image_dataset
from beyondpixel.datamodules.datasets.labels import IGNORE_INDEX
from beyondpixel.datamodules.loading import (
    AugmentedDataset,
    Collate,
    ResumableLoader,
    SampleLoader,
    default_workers,
    single_threaded,
)
from beyondpixel.datamodules.normalization import NORMALIZATIONS, Batch, Normalization, Triple
from beyondpixel.datamodules.options import batch_size_of_process, check_options
from beyondpixel.datamodules.resampling import Resampling, Size
from beyondpixel.datamodules.sampling import EvaluationSampler, TrainingSampler
from beyondpixel.datamodules.transforms import RandomScaleCrop, TrainingTransform, resize

Color = tuple[int, int, int]


class SegmentationDataModule(LightningDataModule, ABC):
    """Base of all data modules; a subclass describes its data set.

    Batches are dicts: `image` float32 (N, 3, H, W), normalized; `mask` int64 (N, H, W) with 255 where there is no
    label (absent where there is no target); `id`, a list of str. Inside a `Trainer` the loaders return 8-bit batches,
    which this module normalizes on the device; outside of one the loaders normalize them.

    A sample's augmentation depends on (seed, epoch, index) alone, and the order of the samples on (seed, epoch). So the
    batches are the same with any number of workers, on any number of processes (the union over them) and after a resume
    in the middle of an epoch. This needs no flag of the `Trainer`.

    A subclass sets `dataset_name`, `splits`, `class_names`, `palette`, `mean`, `std`, and implements `load_split`.
    `classes_excluded_from_mean` lists classes that are trained and evaluated, but that publications exclude from their
    mean: the mean over the others is then logged as well, as `mIoU_<number of the others>`.

    Args:
        batch_size: Images per training step over all processes; each gets an equal share.
        eval_batch_size: Images per evaluation step of each process.
        num_workers: Worker processes per loader; None chooses: 0 on up to two cores, otherwise up to 8.
        timeout: Seconds without data from a worker after which the run fails, naming the samples.
        seed: Seed of the order and the augmentation of the training images.
        crop_size: Side, or height and width, of the training crops; None takes whole images if all have one size.
        scales: Lowest and highest factor of the random rescaling of training images.
        scale_step: Step between the factors, such as 0.25 for 0.5, 0.75, 1, ...; None takes any factor in the range.
        flip: Flip training images horizontally with probability 0.5.
        crop_max_class_share: Draw up to 10 positions of a crop, until no class has this share or more of its labeled
            pixels; None takes the first. The MCIBI authors use 0.75.
        photometric_distortion: Distort brightness, contrast, saturation and hue of training images at random, as the
            MCIBI authors do.
        image_size: Height and width to which all images and targets are resized first, also in evaluation; None keeps
            the images' own sizes.
        resampling: How images are rescaled, by `image_size` and by `scales`: "bicubic_antialias" as Pillow's BICUBIC,
            which the RMI authors use; "linear" as OpenCV's, which the MCIBI authors use; "area_cubic" is OpenCV's area
            average when shrinking and its cubic when enlarging. Masks use the nearest pixel.
        normalization: "dataset" uses the mean and standard deviation of the data set, "imagenet" those of ImageNet,
            "inception" 0.5 for both, which timm's `tf_` EfficientNets were trained with.
        cache: "ram" keeps all decoded images in memory, once per training process; None reads them each time.
        on_error: "raise" stops at the first bad file and lists all of them; "skip" reads all training files beforehand
            and trains without the bad ones, which are listed in `skipped_files.txt` in the run's folder. Evaluation
            never skips.
        predict_path: An image, or a folder of images, to predict; None predicts the test images.
    """

    dataset_name: ClassVar[str]
    # whether all images have one size, so that evaluation batches and uncropped training batches can be stacked
    fixed_size: ClassVar[bool] = True

    splits: tuple[str, ...]
    class_names: list[str]
    palette: list[Color]
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
        timeout: float = 600,
        seed: int = 0,
        crop_size: int | tuple[int, int] | None = None,
        scales: tuple[float, float] = (1.0, 1.0),
        scale_step: float | None = None,
        flip: bool = True,
        crop_max_class_share: float | None = None,
        photometric_distortion: bool = False,
        image_size: tuple[int, int] | None = None,
        resampling: Resampling = "area_cubic",
        normalization: Literal["dataset", "imagenet", "inception"] = "dataset",
        cache: Literal["ram"] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        predict_path: str | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.timeout = timeout
        self.seed = seed
        self.crop_size: Size | None = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        self.scales = scales
        self.scale_step = scale_step
        self.flip = flip
        self.crop_max_class_share = crop_max_class_share
        self.photometric_distortion = photometric_distortion
        self.image_size = image_size
        self.resampling = resampling
        self.normalization = normalization
        self.cache = cache
        self.on_error = on_error
        self.predict_path = predict_path
        check_options(self)
        if normalization != "dataset":
            self.mean, self.std = NORMALIZATIONS[normalization]
        self._datasets: dict[str, SegmentationDataset] = {}

    @property
    def num_classes(self) -> int:
        """Number of classes, void not counted."""
        return len(self.class_names)

    @property
    def batch_size_per_process(self) -> int:
        """Images per training step of this process: `batch_size` divided by the number of processes.

        Raises:
            DataError: It is not divisible; the message suggests batch sizes and numbers of processes that are.
        """
        return batch_size_of_process(self.batch_size, self._process()[1])

    @cached_property
    def normalize(self) -> Normalization:
        """Conversion of 8-bit batches to normalized float batches."""
        return Normalization(self.mean, self.std)

    @abstractmethod
    def load_split(self, split: str) -> SegmentationDataset:
        """Find the samples of a split.

        Raises:
            DataError: The data is missing or incomplete.
        """

    def dataset(self, split: str) -> SegmentationDataset:
        """Return the raw samples of one of `splits`: uint8 images and masks at `image_size`, without augmentation."""
        if split not in self._datasets:
            dataset = self._resized(self.stored(split))
            self._datasets[split] = CachedDataset(dataset) if self.cache == "ram" else dataset
        return self._datasets[split]

    def stored(self, split: str) -> SegmentationDataset:
        """Return a split's samples at the images' own sizes; without faulty training samples with `on_error="skip"`."""
        if split not in self.splits:
            raise ValueError(f"{self.dataset_name} has no split {split!r}; it has {', '.join(self.splits)}")
        dataset = self.load_split(split)
        if self.on_error == "skip" and split == self.train_split:
            folder = Path() if self.trainer is None else Path(self.trainer.default_root_dir)
            listing = folder / "skipped_files.txt" if self._process()[0] == 0 else None
            return without_faults(dataset, name=self.dataset_name, listing=listing)
        dataset.require_files()
        return dataset

    def fingerprint(self, split: str) -> str:
        """Return a short hash of a split's content, which identifies the data of a run.

        It covers the samples' ids in their order, the bytes of all masks, and the size and the first and last 4 KiB of
        all images (for generated scenes: their settings and the first scene). It does not depend on `root`, links,
        dates, or the processing of the files: class mapping, `image_size`, augmentation.
        """
        return self.dataset(split).fingerprint()

    def setup(self, stage: str | None = None) -> None:
        """Check the files that the stage needs, so that a missing one is reported before anything is computed."""
        if stage in (None, "fit"):
            _ = self.batch_size_per_process
        needed: dict[str, list[str | None]] = {
            "fit": [self.train_split, self.val_split],
            "validate": [self.val_split],
            "test": [self.test_split],
            "predict": [None if self.predict_path else self.test_split],
        }
        stages = needed if stage is None else {stage: needed[stage]}
        for split in dict.fromkeys(split for splits in stages.values() for split in splits if split is not None):
            self.dataset(split)

    def train_dataloader(self) -> ResumableLoader:
        """Return a loader of shuffled, augmented samples in whole batches."""
        dataset = self.dataset(self.train_split)
        if len(dataset) < self.batch_size:
            raise data_error(
                f"{self.dataset_name}: split {self.train_split!r} has {len(dataset)} images, fewer than one batch of "
                f"{self.batch_size}",
                expected="at least one whole batch",
                remedy=f"lower --data.batch_size to {len(dataset)} or below",
            )
        crop = self._crop(dataset)
        transform = TrainingTransform(
            RandomScaleCrop(crop, self.scales, self.scale_step, self.resampling, self.crop_max_class_share),
            flip=self.flip,
            fill=self._fill(),
            photometric=self.photometric_distortion,
        )
        if isinstance(dataset, CachedDataset):
            dataset.fill()
        batch_size = self.batch_size_per_process
        rank, world_size = self._process()
        return ResumableLoader(
            AugmentedDataset(dataset, augment=transform, seed=self.seed),
            batch_size=batch_size,
            sampler=TrainingSampler(dataset, batch_size=batch_size, rank=rank, world_size=world_size, seed=self.seed),
            drop_last=True,
            batches_done=self._batches_done if self._is_running() else None,
            **self._loading(),
        )

    def val_dataloader(self) -> SampleLoader | list[SampleLoader]:
        """Return a loader of all validation images in order; an empty list if no images are held out."""
        return [] if self.val_split is None else self._evaluation_loader(self.dataset(self.val_split))

    def test_dataloader(self) -> SampleLoader:
        """Return a loader of all test images in order."""
        return self._evaluation_loader(self.dataset(self.test_split))

    def predict_dataloader(self) -> SampleLoader:
        """Return a loader of the images of `predict_path`, each at its own size, or of the test images; no targets."""
        if self.predict_path is None:
            return self._evaluation_loader(MappedDataset(self.dataset(self.test_split), _without_target), fill=False)
        images = self._resized(image_dataset(Path(self.predict_path)))
        return self._evaluation_loader(images, batch_size=1, fill=False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalize on the device, where it is nearly free, after transferring a quarter of the bytes."""
        batch = self.normalize(batch)
        if self.trainer is not None:
            # with 16-true and the like, Lightning converts float inputs before this, when they were still integers
            batch["image"] = self.trainer.precision_plugin.convert_input(batch["image"])
        return batch

    def _resized(self, dataset: SegmentationDataset) -> SegmentationDataset:
        if self.image_size is None:
            return dataset
        return MappedDataset(dataset, partial(resize, size=self.image_size, resampling=self.resampling))

    def _crop(self, dataset: SegmentationDataset) -> Size:
        if self.crop_size is not None:
            return self.crop_size
        if not self.fixed_size and self.image_size is None:
            raise ValueError(
                f"{self.dataset_name} has images of different sizes, so training needs a crop_size, such as 513"
            )
        height, width = dataset[0].image.shape[:2]
        return height, width

    def _fill(self) -> tuple[int, ...]:
        return tuple(round(255 * value) for value in self.mean)

    def _evaluation_loader(
        self, dataset: SegmentationDataset, *, batch_size: int | None = None, fill: bool = True
    ) -> SampleLoader:
        if isinstance(dataset, CachedDataset):
            dataset.fill()
        rank, world_size = self._process()
        return SampleLoader(
            AugmentedDataset(dataset),
            batch_size=batch_size or self.eval_batch_size,
            sampler=EvaluationSampler(dataset, rank=rank, world_size=world_size, fill=fill),
            **self._loading(),
        )

    def _loading(self) -> dict[str, Any]:
        workers = self.num_workers
        if workers is None:
            workers = default_workers(1 if self.trainer is None else self.trainer.num_devices)
        return {
            "num_workers": workers,
            "timeout": self.timeout if workers else 0,
            "collate_fn": Collate(self._fill(), None if self._is_running() else self.normalize),
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": workers > 0,
            "prefetch_factor": 4 if workers else None,
            "worker_init_fn": single_threaded,
        }

    def _process(self) -> tuple[int, int]:
        """Return the rank of this process and the number of processes."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _is_running(self) -> bool:
        """Return whether a Trainer uses the loaders; a finished one stays attached, but then a plain loop uses them."""
        return self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING

    def _batches_done(self) -> int:
        # Lightning's counter rather than the loader's own: a batch that was fetched but not finished when the run was
        # interrupted is repeated
        assert self.trainer is not None
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)


def _without_target(sample: Sample) -> Sample:
    return Sample(sample.image, None, sample.id)
