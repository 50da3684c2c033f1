"""Full disks: which file could not be written, and what is left, in one sentence."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beyondpixel.experiments.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Name a file in the errors of writing it; the system names those that cannot be opened only."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:  # without a number it is a text alone
            error.filename = str(file)
        raise


@contextmanager
def full_disk_as_user_error(folder: Path) -> Iterator[None]:
    """Turn errors of a full disk, wherever they were met, into one sentence.

    Args:
        folder: a folder on the disk, for errors that name no file.

    Example:
        >>> import os
        >>> with full_disk_as_user_error(Path("/")):
        ...     raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/last.ckpt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        beyondpixel.experiments.errors.UserError: disk full: /last.ckpt could not be written, ... bytes are free; ...
    """
    try:
        yield
    except Exception as error:
        full = full_disk_error(error)
        if full is None:
            raise
        raise UserError(describe_failed_write(full, folder)) from error


def full_disk_error(error: BaseException | None) -> OSError | None:
    """The error of a full disk that an error is, or came of: torch hides it behind one of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def describe_failed_write(error: OSError, folder: Path) -> str:
    """What could not be written and why; of a full disk, how much is free, and what to do."""
    file = Path(error.filename or folder)
    if error.errno not in FULL:
        return f"{file} could not be written: {error.strerror}"
    free = shutil.disk_usage(closest_existing(file)).free
    return f"disk full: {file} could not be written, {free:,} bytes are free; make room and give the command again"


def closest_existing(path: Path) -> Path:
    """A path, or where nothing is there yet the closest folder above it."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.exists())
