"""Processes: rank of this process, signals that stop it, and termination of child processes."""

import os
import signal
import subprocess
from contextlib import suppress
from typing import Any


def known_signals(*names: str) -> tuple[signal.Signals, ...]:
    """The named signals that this system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


# `kill` and a cluster's preemption; SLURM's --signal, set by users; the end of a remote session. Windows has only the
# first.
KILLS = known_signals("SIGTERM", "SIGUSR1", "SIGHUP")


def process_rank() -> int:
    """Rank from Lightning (if it started the process) or SLURM; the process with rank 0 writes the run's folder."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0")))


def exit_code(code: int) -> int:
    """Exit code of this process for a run's exit code, which only the first process returns; others return 0.

    Lightning kills the first process as soon as one that it has started ends with a nonzero code, even while a
    checkpoint is written.
    """
    return code if process_rank() == 0 else 0


def kill_with_children(process: subprocess.Popen[Any]) -> None:
    """Kill a process that was started in its own session and, on systems with sessions, its children."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()
