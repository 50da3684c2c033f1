"""Processes: the rank of this one in its run, the signals that end it, and the end of those that it started."""

import os
import signal
import subprocess
from contextlib import suppress
from typing import Any


def known_signals(*names: str) -> tuple[signal.Signals, ...]:
    """Those of the named signals that this system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


# `kill` and a cluster's preemption; what users let SLURM send by --signal; the end of a remote session. Windows has the
# first of them.
KILLS = known_signals("SIGTERM", "SIGUSR1", "SIGHUP")


def process_rank() -> int:
    """0 for the process that writes the run's folder; as Lightning (where it started the process) or SLURM says."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0")))


def exit_code(code: int) -> int:
    """The code for the end of a run, which is told by its first process alone.

    Lightning kills the first process as soon as one that it has started ends with a code, be it while a checkpoint is
    written.
    """
    return code if process_rank() == 0 else 0


def ask_to_stop(process: subprocess.Popen[Any]) -> None:
    """Send Ctrl-C to a process that was started in a session of its own.

    Windows has no sessions: there Ctrl-C has reached the process as well, and it cannot be sent to one alone.
    """
    if hasattr(os, "setsid"):
        process.send_signal(signal.SIGINT)


def kill_with_children(process: subprocess.Popen[Any]) -> None:
    """End a process that was started in a session of its own, and where there are sessions its children with it."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()
