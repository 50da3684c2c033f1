"""Errors about bad data: what is wrong, where, what was expected, and how to fix it."""

from collections.abc import Sequence

LISTED = 20


class DataError(ValueError):
    """A data set on disk cannot be used; the message lists the offenders and the remedy."""


class SubsetWarning(UserWarning):
    """A split has fewer images than were published."""


class BadFileError(ValueError):
    """One file cannot be used; the message names it and says why."""


def data_error(what: str, offenders: Sequence[str] = (), *, expected: str, remedy: str) -> DataError:
    """Build one `DataError` for all offenders: the first 20 are listed, all are counted.

    Args:
        what: What is wrong, and where.
        offenders: File names with their faults, if the error is about files.
        expected: What should have been there.
        remedy: What to do, with the command where there is one.

    >>> print(data_error("2 masks are missing", ["a.png", "b.png"], expected="one for each image", remedy="add them"))
    2 masks are missing:
      a.png
      b.png
    Expected: one for each image.
    To fix it: add them
    """
    lines = [f"  {offender}" for offender in offenders[:LISTED]]
    if len(offenders) > LISTED:
        lines.append(f"  ... and {len(offenders) - LISTED} more ({len(offenders)} in all)")
    listing = ":\n" + "\n".join(lines) if lines else "."
    return DataError(f"{what}{listing}\nExpected: {expected}.\nTo fix it: {remedy}")
