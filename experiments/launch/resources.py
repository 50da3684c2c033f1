"""What a run gets from SLURM."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from beyondpixel.experiments.errors import UserError

NO_LIMIT = 100_000
LONGEST_WARNING_S = 120
SHORTEST_WARNING_S = 15
# options of sbatch by which the launcher and submitit find jobs, tasks and their output again
RESERVED = ("array", "error", "hold", "job-name", "ntasks", "ntasks-per-node", "open-mode", "output", "signal", "wrap")
# sites that give GPUs by one of these need no --gpus-per-node
OTHER_WAYS_TO_GPUS = ("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")


@dataclass(frozen=True)
class Resources:
    """What each run gets from SLURM.

    Attributes:
        gpus: GPUs a node; 0 runs on the CPU. There is one task a GPU.
        nodes: nodes of one run.
        minutes: time limit. A run that needs longer is requeued and resumes.
        warning_s: seconds before the time limit at which SLURM tells the run to save and stop; None is a tenth of the
            limit, 2 minutes at most.
        partition: SLURM's partition; None is the cluster's default.
        max_parallel: runs at a time; None is all.
        cpus: CPUs of one task; None leaves that to the cluster.
        mem: memory a node, such as `32G`; None leaves that to the cluster.
        sbatch: further options of sbatch, such as `account`; True for one without a value.
        srun: further arguments of srun, such as `--container-image=...`.
        setup: lines of shell that run before Python starts.
    """

    gpus: int = 1
    nodes: int = 1
    minutes: int = 240
    warning_s: int | None = None
    partition: str | None = None
    max_parallel: int | None = None
    cpus: int | None = None
    mem: str | None = None
    sbatch: Mapping[str, str | bool] = field(default_factory=dict)
    srun: Sequence[str] = ()
    setup: Sequence[str] = ()

    def parameters(self, name: str, *, max_parallel: int | None, after: str | None) -> dict[str, Any]:
        """submitit's parameters of an array.

        Args:
            name: of the job.
            max_parallel: runs of this array at a time.
            after: a job that must have ended before this one starts.
        """
        warning = self.warning_s or min(LONGEST_WARNING_S, max(SHORTEST_WARNING_S, self.minutes * 6))
        other_gpus = any(option in self.sbatch for option in OTHER_WAYS_TO_GPUS)
        given: dict[str, Any] = {
            "job_name": name,
            "nodes": self.nodes,
            "ntasks_per_node": max(1, self.gpus),
            "gpus_per_node": None if other_gpus else self.gpus or None,
            "time": self.minutes,
            "cpus_per_task": self.cpus,
            "mem": self.mem,
            "partition": self.partition,
            "array_parallelism": max_parallel or NO_LIMIT,
            "signal_delay_s": warning,
            "setup": list(self.setup) or None,
            "dependency": after and f"afterany:{after}",
            # one task that fails must not leave the others waiting for it
            "srun_args": ["--kill-on-bad-exit=1", *self.srun],
            # Preemption and the failure of a node bring a job back. It is held until its runs are prepared.
            "additional_parameters": {"requeue": True, **self.sbatch, "hold": True},
        }
        if "no-requeue" in self.sbatch:
            del given["additional_parameters"]["requeue"]
        return {key: value for key, value in given.items() if value is not None}


def read_sbatch(words: Sequence[str]) -> dict[str, str | bool]:
    """Options of sbatch, as the user writes them.

    Raises:
        UserError: for an option that the launcher sets itself.

    Example:
        >>> read_sbatch(["account=vision", "--mail-user=me@here", "exclusive"])
        {'account': 'vision', 'mail-user': 'me@here', 'exclusive': True}
    """
    options: dict[str, str | bool] = {}
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise UserError(f"--sbatch {word}: expected NAME=VALUE or NAME, such as account=vision or exclusive")
        if name in RESERVED:
            raise UserError(f"--sbatch {word}: the launcher sets --{name} itself; leave it away")
        options[name] = value if equals else True
    return options


def read_time_limit(text: str) -> int:
    """SLURM's ways to write a time limit, in minutes, rounded up.

    Raises:
        UserError: for anything else.

    Example:
        >>> read_time_limit("90"), read_time_limit("4:00:00"), read_time_limit("1-12"), read_time_limit("2:30")
        (90, 240, 2160, 3)
    """
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    numeric = all(re.fullmatch(r"\d+", part) for part in ([days, *parts] if dash else parts))
    if not numeric or len(parts) > 3:
        raise UserError(f"--time {text}: expected minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, such as 4:00:00")
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    total = (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)
    if total < 1:
        raise UserError(f"--time {text}: expected at least a minute")
    return total
