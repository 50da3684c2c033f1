"""A run belongs to one process at a time, on one machine and across the nodes of a cluster."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from beyondpixel.experiments.errors import UserError

SECONDS_BETWEEN_BEATS = 20.0
# some network file systems keep locks to the node; a holder elsewhere is then taken for dead after this silence
SECONDS_OF_SILENCE = 120.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        host: the machine.
        pid: the process on it.
        job: its SLURM job, if it is one.
    """

    host: str
    pid: int
    job: str | None = None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f", SLURM job {self.job}" if self.job else "")


class HeldError(UserError):
    """Another process has the run."""

    def __init__(self, folder: Path, holder: Holder | None) -> None:
        who = holder or "a process that has not said its name yet"
        super().__init__(f"{folder} is being worked on by {who}; wait for it, or stop it first")
        self.holder = holder


class RunLock:
    """Holds a run's `lock` file while it is entered.

    The kernel lets go of it when the process ends, however it ends, so nothing stale stays behind. Where a network
    file system keeps such locks to the node, a heartbeat (the file's time) tells the other nodes; a holder that was
    killed there is taken for dead after two minutes.

    Args:
        file: the lock file; it stays when the lock is released.
        patience: seconds to go on trying while somebody else holds it.

    Raises:
        HeldError: on entering, if another process has it.

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
        self._released = threading.Event()

    def __enter__(self) -> RunLock:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.patience
        while not self._acquire():
            if time.monotonic() > deadline:
                raise HeldError(self.file.parent, _read(self.file))
            time.sleep(0.2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        os.truncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _acquire(self) -> bool:
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        me = this_process()
        if not _try_to_lock(descriptor, fcntl.LOCK_EX) or _lives_elsewhere(self.file, me):
            os.close(descriptor)
            return False
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(me)).encode(), 0)
        os.utime(descriptor)
        self._descriptor = descriptor
        # a forked worker would hold the lock on after this process was killed
        os.register_at_fork(after_in_child=self._let_go_in_child)
        threading.Thread(target=self._beat, name="heartbeat of the run's lock", daemon=True).start()
        return True

    def _let_go_in_child(self) -> None:
        if not self._released.is_set():
            os.close(self._descriptor)  # without unlocking: the lock belongs to the parent's descriptor as well

    def _beat(self) -> None:
        while not self._released.wait(SECONDS_BETWEEN_BEATS):
            os.utime(self.file)


def this_process() -> Holder:
    """This process, as it signs a lock."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
    return Holder(socket.gethostname(), os.getpid(), job)


def holder_of(file: Path) -> Holder | None:
    """Who holds a lock now; None if nobody does."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if not _try_to_lock(descriptor, fcntl.LOCK_SH):
            return _read(file) or Holder("this machine or another", 0)
        return _read(file) if _lives_elsewhere(file, this_process()) else None
    finally:
        os.close(descriptor)


def _try_to_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives_elsewhere(file: Path, me: Holder) -> bool:
    """Whether a process on another node signed the lock that this node got, and shows signs of life.

    A requeued job finds its own earlier signature, maybe from another node: SLURM runs a job once at a time.
    """
    holder = _read(file)
    if holder is None or holder.host == me.host or (holder.job is not None and holder.job == me.job):
        return False
    return time.time() - file.stat().st_mtime < SECONDS_OF_SILENCE


def _read(file: Path) -> Holder | None:
    try:
        return Holder(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):  # gone, empty, or being written
        return None
