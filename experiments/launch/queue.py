"""Asking SLURM."""

from __future__ import annotations

import getpass
import subprocess


def living_jobs() -> dict[str, str]:
    """States of this user's jobs that wait or run, by number, array elements as `12_3`.

    Empty where there is no SLURM or it does not answer. That is safe: a second job of the same run finds the run's
    lock, or that it is done.
    """
    said = ask("squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i|%T")
    return dict(line.strip().split("|", 1) for line in said.splitlines() if "|" in line)


def ask(*command: str) -> str:
    """What one of SLURM's programs says; nothing if there is none or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return ""
