"""Checks of the data modules' options."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from beyondpixel.datamodules.datasets.errors import data_error
from beyondpixel.datamodules.normalization import NORMALIZATIONS
from beyondpixel.datamodules.resampling import Resampling

if TYPE_CHECKING:
    from beyondpixel.datamodules.base import SegmentationDataModule

_CHOICES: dict[str, tuple[Any, ...]] = {
    "cache": ("ram", None),
    "normalization": ("dataset", *NORMALIZATIONS),
    "on_error": ("raise", "skip"),
    "resampling": get_args(Resampling),
}


def check_options(data: "SegmentationDataModule") -> None:
    """Check a data module's options.

    Raises:
        ValueError: An option is invalid; the message has its name, the expected and the given value.
    """
    for name in ("batch_size", "eval_batch_size"):
        require(getattr(data, name) >= 1, name, "at least 1", getattr(data, name))
    for name, choices in _CHOICES.items():
        check_choice(name, getattr(data, name), choices)
    require(data.timeout > 0, "timeout", "a positive number of seconds", data.timeout)
    require(data.seed >= 0, "seed", "at least 0", data.seed)
    workers = data.num_workers
    require(workers is None or workers >= 0, "num_workers", "at least 0, or None to choose", workers)
    low, high = data.scales
    require(0 < low <= high, "scales", "the lowest and the highest factor, both positive", data.scales)
    step, share = data.scale_step, data.crop_max_class_share
    require(step is None or step > 0, "scale_step", "positive, or None for any factor in scales", step)
    require(share is None or 0 < share <= 1, "crop_max_class_share", "above 0 and at most 1, or None", share)
    for name in ("crop_size", "image_size"):
        size = getattr(data, name)
        require(size is None or min(size) >= 1, name, "positive", size)
    _check_crop(data)


def _check_crop(data: "SegmentationDataModule") -> None:
    if data.crop_size is not None and data.image_size is not None:
        largest = tuple(round(side * data.scales[1]) for side in data.image_size)
        if all(crop > side for crop, side in zip(data.crop_size, largest, strict=True)):
            raise ValueError(
                f"crop_size {data.crop_size} is larger than every image: image_size is {data.image_size}, and scales "
                f"enlarge it to at most {largest}; give a smaller crop_size, or None for crops of image_size"
            )


def batch_size_of_process(batch_size: int, processes: int) -> int:
    """Return the images per step of each process.

    Raises:
        DataError: batch_size is not divisible by the number of processes.

    >>> batch_size_of_process(16, 4)
    4
    """
    if batch_size % processes == 0:
        return batch_size // processes
    below = batch_size - batch_size % processes
    sizes = [str(size) for size in (below, below + processes) if size]
    fewer = max(count for count in range(1, processes) if batch_size % count == 0)
    raise data_error(
        f"batch_size {batch_size} is not divisible by {processes} processes",
        expected="a batch_size over all processes that is divisible by their number",
        remedy=f"use --data.batch_size {' or '.join(sizes)}, or {fewer} process{'es' * (fewer > 1)} instead of "
        f"{processes}",
    )


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise a ValueError that lists the choices unless value is one of them."""
    require(value in choices, name, f"one of {', '.join(map(repr, choices))}", value)


def require(holds: bool, name: str, expected: str, got: Any) -> None:
    """Raise a ValueError with an option's name, the expected and the given value unless the condition holds."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {got!r}")
