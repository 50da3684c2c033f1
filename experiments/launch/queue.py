"""Which of this user's SLURM jobs wait or run."""

from __future__ import annotations

import getpass
import shutil
import subprocess


def living_jobs() -> dict[str, str]:
    """States by job number, array elements as `12_3`; empty where there is no SLURM or it does not answer.

    That no job is known is safe: a second job of the same run finds the run's lock, or that it is done.
    """
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i|%T"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return {}
    return dict(line.strip().split("|", 1) for line in said.splitlines() if "|" in line)
