"""File lock that gives a run to one process at a time."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

from beyondpixel.experiments.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

# errors of flock on a file system without locks
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

SECONDS_BETWEEN_TRIES = 0.1

_descriptors: set[int] = set()  # of the locks that this process has open


class HeldError(UserError):
    """Another process holds the run."""

    def __init__(self, folder: Path, holder: str = "another process") -> None:
        super().__init__(f"{folder} is being worked on by {holder}; wait for it, or stop it first")


class RunLock:
    """Hold a run's `lock` file while entered.

    The kernel releases the lock when the process ends, however it ends, so no stale lock remains. It works across
    machines if the file system forwards `flock`: NFS (4, or 3 with its lock daemon), Lustre mounted with `flock`,
    GPFS, CephFS, BeeGFS with `tuneUseGlobalFileLocks`. On Lustre mounted with `localflock` it works on one node only.

    Args:
        file: the lock file; it stays when the lock is released.
        patience: seconds to keep trying while another process holds it.

    Raises:
        HeldError: on entering, if another process holds it.
        UserError: on entering, if the file system has no locks.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "lock"
        >>> with RunLock(file):
        ...     holder_of(file) == this_process()
        True
        >>> holder_of(file) is None
        True
    """

    def __init__(self, file: Path, *, patience: float = 2.0) -> None:
        self.file = file
        self.patience = patience
        self._lock: _KernelLock | _PackageLock | None = None

    def __enter__(self) -> RunLock:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lock = _open(self.file, create=True)
        try:
            deadline = time.monotonic() + self.patience
            while not lock.acquire():
                if time.monotonic() > deadline:
                    raise HeldError(self.file.parent, _signature(self.file))
                time.sleep(SECONDS_BETWEEN_TRIES)
            lock.sign(this_process())
        except BaseException:
            lock.close()
            raise
        self._lock = lock
        return self

    def __exit__(self, *error: object) -> None:
        assert self._lock is not None
        self._lock.sign("")
        self._lock.close()


def this_process() -> str:
    """Signature of this process in a lock file."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
    return f"process {os.getpid()} on {socket.gethostname()}" + (f", SLURM job {job}" if job else "")


def holder_of(file: Path) -> str | None:
    """Signature of the process that holds a lock; None if none does.

    Raises:
        UserError: if the file system has no locks.
    """
    try:
        lock = _open(file, create=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return None if lock.acquire(shared=True) else _signature(file)
    finally:
        lock.close()


def _signature(file: Path) -> str:
    return file.read_text(errors="replace") or "another process"  # which has not signed yet


def _open(file: Path, *, create: bool) -> _KernelLock | _PackageLock:
    """Open a lock file; if it is missing, create it, or without `create` raise FileNotFoundError."""
    return _PackageLock(file, create=create) if fcntl is None else _KernelLock(file, create=create)


class _KernelLock:
    """Kernel lock (`flock`), which is released when the process ends, however it ends."""

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
            if error.errno not in UNSUPPORTED:
                raise
            raise UserError(
                f"{self._file}: its file system has no locks ({error.strerror}), without which two processes could "
                "write one run; choose an --output on a local disk, NFS 4, Lustre mounted with flock, GPFS or CephFS"
            ) from error
        return True

    def sign(self, text: str) -> None:
        """Replace the signature in the file."""
        if self._descriptor in _descriptors:
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)

    def close(self) -> None:
        """Release the lock; a forked child does nothing."""
        if self._descriptor in _descriptors:
            _descriptors.discard(self._descriptor)
            os.close(self._descriptor)


class _PackageLock:
    """`filelock` lock on a second file, because on Windows the signature in a locked file cannot be read."""

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


def _close_in_child() -> None:
    """Close the locks in a forked child: a data worker would keep them after its parent was killed."""
    for descriptor in _descriptors:
        os.close(descriptor)  # without unlocking, which would unlock the parent's descriptor as well
    _descriptors.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_close_in_child)
