"""Queries to SLURM: pending and running jobs, reasons for waiting, and how other jobs ended."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from functools import cached_property
from pathlib import Path

ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"}
    | {"OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
)
# final states of jobs that were cancelled, preempted or lost their node: started again, not reported as failed
INTERRUPTED = ("CANCELLED", "NODE_FAIL", "PREEMPTED")
# variables that a process or job started inside an allocation must not inherit
ALLOCATION_PREFIXES = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_")
PROCESS_GROUP_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# SLURM's messages when the kernel (cgroups) or SLURM itself (OverMemoryKill) kills a job for its memory
OUT_OF_MEMORY = "oom.?kill|out of memory|exceeded (job )?memory limit"
SHOWN_LINES = 3


class Queue:
    """This user's jobs, queried once; empty if there is no SLURM or it does not answer.

    That is safe: a second job of the same run finds the run locked or done.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, dict[str, str]] = {}

    def living(self, number: str | None) -> str | None:
        """Description of the pending or running job with this number, such as `12_3` for an array element."""
        if number is None:  # on this machine: a local launch does not wait for SLURM
            return None
        state, reason = self._jobs.get(number, ("", ""))
        if not state or state in ENDED:
            return None
        text = f"SLURM job {number}"
        if re.search("held|hold", f"{reason} {state}", re.IGNORECASE):
            return f"{text} is held ({reason}); release it with: scontrol release {number}"
        waits = state == "PENDING" and reason not in ("", "None")
        return f"{text}, {state.lower()}" + (f": {reason}" if waits else "")

    def death_of(self, number: str, log: Path, *, began: bool) -> str | None:
        """Why a job that is gone counts as failed; None if it can simply be started again.

        Args:
            number: the job's number.
            log: file of its standard error before the run redirects it; SLURM writes there as well.
            began: whether the run had started.
        """
        end = self._end_of(number)
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        if end == "OUT_OF_MEMORY" or re.search(OUT_OF_MEMORY, text, re.IGNORECASE):
            return f"out of memory in SLURM job {number}: give more with --mem, or lower data.batch_size"
        if began or end in INTERRUPTED or "CANCELLED AT" in text:
            return None
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines and end not in ENDED:
            return None
        reason = "; ".join(lines[-SHOWN_LINES:]) or f"no output, final state {end}"
        return f"SLURM job {number} ended before the run began: {reason} ({log})"

    def _end_of(self, number: str) -> str:
        """The state in which a job ended, such as OUT_OF_MEMORY; empty if SLURM has no record of it any more."""
        if number in self._jobs:
            return self._jobs[number][0]
        array = number.partition("_")[0]
        if array not in self._accounts:
            wanted = ("--noheader", "--parsable2", "--allocations", "--format", "JobID,State")
            output = ask("sacct", *wanted, "--jobs", array) or ""
            entries = (line.split("|") for line in output.splitlines() if "|" in line)
            # who cancelled a job follows its state
            self._accounts[array] = {entry[0].strip(): entry[1].split()[0] for entry in entries if entry[1].strip()}
        return self._accounts[array].get(number, "")

    @cached_property
    def _jobs(self) -> dict[str, tuple[str, str]]:
        """State and reason for waiting of each job."""
        wanted = ("--noheader", "--array", "--states=all", "--user", getpass.getuser())
        output = ask("squeue", *wanted, "--format", "%i|%T|%r") or ""
        jobs = (line.strip().split("|", 2) for line in output.splitlines() if line.count("|") > 1)
        return {number: (state, reason) for number, state, reason in jobs}


def ask(*command: str) -> str | None:
    """Output of one of SLURM's programs; None if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return None


def environment_outside_allocation() -> dict[str, str]:
    """This process's environment without what SLURM sets in an allocation.

    Jobs submitted from inside one fail on these variables in srun, and Lightning mistakes a process that has them for a
    job step. The location of SLURM's configuration and the user's defaults for sbatch (`SBATCH_ACCOUNT`) stay.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not (name.startswith(ALLOCATION_PREFIXES) or name in PROCESS_GROUP_VARIABLES)
    }
