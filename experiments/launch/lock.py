"""File lock that gives a run to one process at a time."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from types import TracebackType

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.file_lock import FileLock, open_lock

SECONDS_BETWEEN_TRIES = 0.1


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
        self._lock: FileLock | None = None

    def __enter__(self) -> RunLock:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lock = open_lock(self.file, create=True)
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lock is not None
        self._lock.sign("")
        self._lock.close()


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
        lock = open_lock(file, create=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return None if lock.acquire(shared=True) else _signature(file)
    finally:
        lock.close()


def _signature(file: Path) -> str:
    return file.read_text(errors="replace") or "another process"  # which is just writing its own
