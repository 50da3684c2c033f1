"""Train on a folder with bad files: leave them out, and say which."""

import warnings
from pathlib import Path

from beyondpixel.datamodules.datasets.errors import data_error
from beyondpixel.datamodules.datasets.samples import ChosenSamples, Samples, find_faults


def without_faults(samples: Samples, *, name: str, listing: Path | None) -> Samples:
    """Read all samples once, and keep those that can be read.

    Args:
        samples: A split with bad files.
        name: The data set's name, for messages.
        listing: Where the bad files are listed, with a warning; None tells nobody (another process does).

    Raises:
        DataError: No sample is left.
    """
    faults = find_faults(samples)
    if not faults:
        return samples
    if listing is not None:
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{fault}\n" for fault in faults.values()))
        warnings.warn(
            f"{name}: training without {len(faults)} of {len(samples)} samples; {listing} lists them", stacklevel=2
        )
    if len(faults) == len(samples):
        raise data_error(
            f"{name}: no training sample can be used",
            list(faults.values()),
            expected="at least some good files",
            remedy=samples.remedy,
        )
    return ChosenSamples(samples, [index for index in range(len(samples)) if index not in faults])
