"""One lock on a file, of the kernel's where it has `flock`, else of the package filelock."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from beyondpixel.experiments.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

# what flock answers on a file system without locks
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

_descriptors: set[int] = set()  # of the locks that this process has open


class _KernelLock:
    """The kernel's, which it releases when the process ends, however it ends."""

    def __init__(self, file: Path, *, create: bool) -> None:
        self._file = file
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o644)
        _descriptors.add(self._descriptor)

    def acquire(self, *, shared: bool = False) -> bool:
        """Try once, without waiting; several processes may share a lock."""
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            raise UserError(
                f"{self._file}: its file system has no locks ({error.strerror}), without which two processes could "
                "write one run; choose an --output on a local disk, NFS 4, Lustre mounted with flock, GPFS or CephFS"
            ) from error
        return True

    def sign(self, text: str) -> None:
        """Replace what the file says."""
        if self._descriptor in _descriptors:
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)

    def close(self) -> None:
        """Let go; a forked child does nothing."""
        if self._descriptor in _descriptors:
            _descriptors.discard(self._descriptor)
            os.close(self._descriptor)


class _PackageLock:
    """filelock's, on a file beside the one that is signed: on Windows nobody can read a file that is locked."""

    def __init__(self, file: Path, *, create: bool) -> None:
        import filelock

        if not create and not file.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
        self._file = file
        self._lock = filelock.FileLock(f"{file}.held")
        self._timeout = filelock.Timeout

    def acquire(self, *, shared: bool = False) -> bool:
        try:
            self._lock.acquire(timeout=0)
        except self._timeout:
            return False
        return True

    def sign(self, text: str) -> None:
        self._file.write_text(text, encoding="utf-8")

    def close(self) -> None:
        self._lock.release()


FileLock = _KernelLock | _PackageLock


def open_lock(file: Path, *, create: bool) -> FileLock:
    """Open a lock file.

    Args:
        file: the file.
        create: whether to make it where it is missing; else it is opened to ask who holds it.

    Raises:
        FileNotFoundError: if it is missing and is not to be made.
    """
    return _PackageLock(file, create=create) if fcntl is None else _KernelLock(file, create=create)


def _close_in_child() -> None:
    """Let go in a forked child: a data worker would hold the lock on after its parent was killed."""
    for descriptor in _descriptors:
        os.close(descriptor)  # without unlocking, which would unlock the parent's descriptor as well
    _descriptors.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_close_in_child)
