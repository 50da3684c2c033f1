"""File lock that gives a run to one process at a time."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from beyondpixel.experiments.errors import UserError

try:
    import fcntl

    HAS_FLOCK = True
except ModuleNotFoundError:  # Windows
    HAS_FLOCK = False

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

    def __enter__(self) -> RunLock:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.patience
        while (release := _acquire(self.file)) is None:
            if time.monotonic() > deadline:
                raise HeldError(self.file.parent, _signature(self.file))
            time.sleep(SECONDS_BETWEEN_TRIES)
        try:
            self.file.write_text(this_process(), encoding="utf-8")
        except BaseException:
            release()
            raise
        self._release, self._process = release, os.getpid()
        return self

    def __exit__(self, *error: object) -> None:
        if os.getpid() == self._process:  # a forked child has no lock
            try:
                self.file.write_text("", encoding="utf-8")
            finally:
                self._release()


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
    if not file.exists():
        return None
    try:
        release = _acquire(file, probe=True)
    except FileNotFoundError:  # removed meanwhile
        return None
    if release is None:
        return _signature(file)
    release()
    return None


def _signature(file: Path) -> str:
    return file.read_text(errors="replace") or "another process"  # which has not signed yet


def _acquire(file: Path, *, probe: bool = False) -> Callable[[], None] | None:
    """Try once; return the function that releases the lock, or None if another process holds it.

    A probe excludes no other probe. A kernel lock (`flock`) is released when the process ends, however it ends.
    """
    if not HAS_FLOCK:
        return _acquire_on_windows(file)
    descriptor = os.open(file, os.O_RDONLY if probe else os.O_RDWR | os.O_CREAT, 0o644)
    _descriptors.add(descriptor)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if probe else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        _close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        if error.errno not in UNSUPPORTED:
            raise
        raise UserError(
            f"{file}: its file system has no locks ({error.strerror}), without which two processes could "
            "write one run; choose an --output on a local disk, NFS 4, Lustre mounted with flock, GPFS or CephFS"
        ) from error
    return partial(_close, descriptor)


def _acquire_on_windows(file: Path) -> Callable[[], None] | None:
    """Lock a second file, because on Windows the signature in a locked file cannot be read."""
    import filelock

    lock = filelock.FileLock(f"{file}.held")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return None
    return lock.release


def _close(descriptor: int) -> None:
    _descriptors.discard(descriptor)
    os.close(descriptor)


def _close_in_child() -> None:
    """Close the locks in a forked child: a data worker would keep them after its parent was killed."""
    for descriptor in _descriptors:
        os.close(descriptor)  # without unlocking, which would unlock the parent's descriptor as well
    _descriptors.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_close_in_child)
