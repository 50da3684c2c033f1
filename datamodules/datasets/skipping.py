"""Exclusion of bad files from training, with a list of them."""

import warnings
from pathlib import Path

from beyondpixel.datamodules.datasets.base import SegmentationDataset, find_faults
from beyondpixel.datamodules.datasets.errors import data_error


def without_faults(dataset: SegmentationDataset, *, name: str, listing: Path | None) -> SegmentationDataset:
    """Read all samples once, and keep those that can be read.

    Args:
        dataset: A split with bad files.
        name: The data set's name, for messages.
        listing: File that lists the bad files, with a warning; None for neither (another process does it).

    Raises:
        DataError: No sample is left.
    """
    faults = find_faults(dataset)
    if not faults:
        return dataset
    if listing is not None:
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{fault}\n" for fault in faults.values()), encoding="utf-8")
        warnings.warn(
            f"{name}: training without {len(faults)} of {len(dataset)} samples; {listing} lists them", stacklevel=2
        )
    if len(faults) == len(dataset):
        raise data_error(
            f"{name}: no training sample can be used",
            list(faults.values()),
            expected="at least some good files",
            remedy=dataset.remedy,
        )
    return dataset.select([index for index in range(len(dataset)) if index not in faults])
