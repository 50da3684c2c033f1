"""What a cell gets from SLURM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from beyondpixel.experiments.errors import UserError

NO_LIMIT = 100_000
LONGEST_WARNING_S = 120
SHORTEST_WARNING_S = 15


@dataclass(frozen=True)
class Resources:
    """What each cell gets from SLURM.

    Attributes:
        gpus: GPUs a node; 0 runs on the CPU. There is one task a GPU.
        nodes: nodes of one cell.
        minutes: time limit. A cell that needs longer is requeued and resumes.
        partition: SLURM's partition; None is the cluster's default.
        max_parallel: cells that run at a time; None is all.
        cpus: CPUs of one task; None leaves that to the cluster.
        memory: memory a node, such as `32G`; None leaves that to the cluster.
        options: further options of sbatch, such as `account`.
    """

    gpus: int = 1
    nodes: int = 1
    minutes: int = 240
    partition: str | None = None
    max_parallel: int | None = None
    cpus: int | None = None
    memory: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def devices(self) -> dict[str, int]:
        """The trainer's keys for these resources; none for one device, so that a run is the same wherever it runs."""
        devices = max(1, self.gpus)
        return {"trainer.devices": devices, "trainer.num_nodes": self.nodes} if devices * self.nodes > 1 else {}

    def of_evaluation(self) -> Resources:
        """What an evaluation gets: one device, and all CPUs that a training has on a node, as a CRF runs on them."""
        cpus = None if self.cpus is None else self.cpus * max(1, self.gpus)
        return replace(self, gpus=min(1, self.gpus), nodes=1, cpus=cpus)

    def warning_s(self) -> int:
        """Seconds before the time limit at which SLURM says that it comes: a tenth of it, 2 minutes at most."""
        return min(LONGEST_WARNING_S, max(SHORTEST_WARNING_S, self.minutes * 6))

    def parameters(self, name: str, *, after: str | None = None) -> dict[str, Any]:
        """submitit's parameters.

        Args:
            name: of the job.
            after: a job that must succeed before this one starts; if it fails, this one is cancelled.
        """
        # without the option, a job whose dependency has failed waits for ever
        wait = {} if after is None else {"dependency": f"afterok:{after}", "kill_on_invalid_dep": "yes"}
        given: dict[str, Any] = {
            "job_name": name,
            "nodes": self.nodes,
            "ntasks_per_node": max(1, self.gpus),
            "gpus_per_node": self.gpus or None,
            "time": self.minutes,
            "cpus_per_task": self.cpus,
            "mem": self.memory,
            "partition": self.partition,
            "array_parallelism": self.max_parallel or NO_LIMIT,
            "signal_delay_s": self.warning_s(),
            # one task that fails must not leave the others waiting for it
            "srun_args": ["--kill-on-bad-exit=1"],
            # preemption and the failure of a node bring the job back
            "additional_parameters": {"requeue": True, **wait, **self.options},
        }
        return {key: value for key, value in given.items() if value is not None}


def minutes_of(time_limit: str) -> int:
    """SLURM's ways to write a time limit, in minutes, rounded up.

    Raises:
        UserError: for anything else.

    Example:
        >>> minutes_of("90"), minutes_of("4:00:00"), minutes_of("1-12"), minutes_of("2:30")
        (90, 240, 2160, 3)
    """
    days, dash, rest = time_limit.rpartition("-")
    parts = rest.split(":")
    numeric = all(re.fullmatch(r"\d+", part) for part in ([days, *parts] if dash else parts))
    if not numeric or len(parts) > 3:
        raise UserError(f"--time {time_limit}: expected minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, such as 4:00:00")
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    total = (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)
    if total < 1:
        raise UserError(f"--time {time_limit}: expected at least a minute")
    return total
