"""Errors of full disks: name the file that could not be written and the free space in one sentence."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beyondpixel.experiments.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Add a file's name to errors of writing it; the system only names files that cannot be opened."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:  # without errno, the message would not contain the name
            error.filename = str(file)
        raise


@contextmanager
def full_disk_as_user_error(folder: Path) -> Iterator[None]:
    """Convert errors of a full disk, wherever they occur, into one sentence.

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
        cause: BaseException | None = error
        while cause is not None:  # torch wraps the system's error
            if isinstance(cause, OSError) and cause.errno in DISK_FULL:
                raise UserError(describe_failed_write(cause, folder)) from error
            cause = cause.__cause__ or cause.__context__
        raise


def describe_failed_write(error: OSError, folder: Path) -> str:
    """Describe which file could not be written and why; for a full disk, also the free space and the remedy."""
    file = Path(error.filename or folder)
    if error.errno not in DISK_FULL:
        return f"{file} could not be written: {error.strerror}"
    free = shutil.disk_usage(closest_existing(file)).free
    return f"disk full: {file} could not be written, {free:,} bytes are free; make room and run the command again"


def closest_existing(path: Path) -> Path:
    """The path itself, or its closest existing parent folder if it does not exist."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.exists())
