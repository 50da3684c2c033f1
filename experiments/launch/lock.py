"""File lock that gives a run to one process at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from beyondpixel.experiments.errors import UserError

SECONDS_BETWEEN_TRIES = 0.1
# what flock answers on a file system without locks
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

_descriptors: set[int] = set()  # of the locks that this process holds


def _close_in_child() -> None:
    """Let go in a forked child: a data worker would hold the lock on after its parent was killed."""
    for descriptor in _descriptors:
        os.close(descriptor)  # without unlocking, which would unlock the parent's descriptor as well
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_in_child)


class HeldError(UserError):
    """Another process has the run."""

    def __init__(self, folder: Path, holder: str = "another process") -> None:
        super().__init__(f"{folder} is being worked on by {holder}; wait for it, or stop it first")


class RunLock:
    """Hold a run's `lock` file while entered.

    The kernel releases the lock when the process ends, however it ends, so nothing stale stays behind. It holds between
    machines where the file system passes `flock` on: NFS (4, or 3 with its lock daemon), Lustre mounted with `flock`,
    GPFS, CephFS, BeeGFS with `tuneUseGlobalFileLocks`. On Lustre mounted with `localflock` it holds on one node only.

    Args:
        file: the lock file; it stays when the lock is released.
        patience: seconds to go on trying while somebody else holds it.

    Raises:
        HeldError: on entering, if another process has it.
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
        self._descriptor = -1

    def __enter__(self) -> RunLock:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        _descriptors.add(self._descriptor)
        try:
            deadline = time.monotonic() + self.patience
            while not _try_to_lock(self._descriptor, fcntl.LOCK_EX, self.file):
                if time.monotonic() > deadline:
                    raise HeldError(self.file.parent, _signature(self.file))
                time.sleep(SECONDS_BETWEEN_TRIES)
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, this_process().encode(), 0)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor in _descriptors:  # not in a forked child
            os.truncate(self._descriptor, 0)
            self._close()

    def _close(self) -> None:
        _descriptors.discard(self._descriptor)
        os.close(self._descriptor)


def this_process() -> str:
    """This process, as it signs a lock."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
    return f"process {os.getpid()} on {socket.gethostname()}" + (f", SLURM job {job}" if job else "")


def holder_of(file: Path) -> str | None:
    """Who holds a lock now; None if nobody does.

    Raises:
        UserError: if the file system has no locks.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return None if _try_to_lock(descriptor, fcntl.LOCK_SH, file) else _signature(file)
    finally:
        os.close(descriptor)


def _try_to_lock(descriptor: int, kind: int, file: Path) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        raise UserError(
            f"{file}: its file system has no locks ({error.strerror}), without which two processes could write one "
            "run; choose an --output on a local disk, NFS 4, Lustre mounted with flock, GPFS or CephFS"
        ) from error
    return True


def _signature(file: Path) -> str:
    return file.read_text(errors="replace") or "another process"  # which is just writing its own
