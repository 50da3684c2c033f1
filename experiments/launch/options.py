"""Options of `launch`: read a cluster file, check options of each executor, build SLURM's parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.merge import suggestion
from beyondpixel.experiments.yaml_files import read_yaml

LISTS = ("sbatch", "srun", "setup")
SLURM_ONLY = ("nodes", "partition", "time", "time_warning", "max_parallel", "cpus", "mem", *LISTS)
CLUSTER_KEYS = (*SLURM_ONLY, "gpus", "executor")
# options that an executor does not take, and what it has instead
FOREIGN = {
    "slurm": (("jobs",), "only for this machine; --executor slurm has --max-parallel"),
    "local": (SLURM_ONLY, "only for --executor slurm; on this machine there are --jobs and --gpus"),
}
MINIMUM = {"gpus": 0, "jobs": 1, "nodes": 1, "max_parallel": 1, "cpus": 1, "time_warning": 1}
DEFAULT_TIME = "4:00:00"
MAX_WARNING_S = 120
MIN_WARNING_S = 15
# options of sbatch that the launcher and submitit set, to find jobs, tasks and their output
RESERVED = ("array", "error", "job-name", "ntasks", "ntasks-per-node", "open-mode", "output", "signal", "wrap")
# options of sbatch that are also options of `launch`
SHARED = ("time", "partition", "mem", "nodes")
# sites that assign GPUs by one of these need no --gpus-per-node
GPU_OPTIONS = ("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")


def read_options(given: Mapping[str, Any], cluster: Path | None) -> dict[str, Any]:
    """Merge options of the command line, which win, and of a cluster file; lists are concatenated.

    Args:
        given: options of the command line; None if not given.
        cluster: a YAML file with some of `CLUSTER_KEYS`.

    Raises:
        UserError: for an unknown key or executor, a number out of range, or an option of the other executor.
    """
    preset = {} if cluster is None else _read_cluster_file(cluster)
    options = {**given, **{key: value for key, value in preset.items() if given[key] is None}}
    options |= {key: [*_as_list(preset.get(key, [])), *given[key]] for key in LISTS}
    _check_numbers(options)
    foreign, hint = FOREIGN[options["executor"] or "local"]
    wrong = [_flag(name) for name in foreign if options[name]]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: {hint}")
    return options


def _check_numbers(options: Mapping[str, Any]) -> None:
    for name, minimum in MINIMUM.items():
        value = options[name]
        if value is not None and (not isinstance(value, int) or value < minimum):
            raise UserError(f"{_flag(name)} {value}: expected a number, {minimum} or more")


def _read_cluster_file(file: Path) -> dict[str, Any]:
    preset = {key.replace("-", "_"): value for key, value in read_yaml(file).items()}
    for key in preset:
        if key not in CLUSTER_KEYS:
            raise UserError(f"--cluster {file}: {key}: unknown option; {suggestion(key, CLUSTER_KEYS)}")
    executor = preset.get("executor")
    if executor is not None and executor not in FOREIGN:
        raise UserError(f"--cluster {file}: executor: expected {' or '.join(FOREIGN)}, got {executor}")
    return preset


def submission_parameters(options: Mapping[str, Any]) -> dict[str, Any]:
    """Build submitit's parameters; an option of sbatch in `SHARED`, such as a time limit, counts as ours.

    There is one task per GPU. A run that needs longer than `time`, in minutes, is requeued and resumes.

    Args:
        options: from `read_options`.

    Raises:
        UserError: for an option that is given twice or set by the launcher itself, an invalid time limit or number of
            nodes, or a warning that is not before the limit.
    """
    sbatch, shared = _read_sbatch(options)
    requested = {**options, **shared}
    gpus = 1 if requested["gpus"] is None else requested["gpus"]
    minutes = read_time_limit(str(requested["time"] or DEFAULT_TIME))
    parameters = {
        "nodes": int(requested["nodes"] or 1),
        "ntasks_per_node": max(1, gpus),
        "gpus_per_node": gpus if gpus and sbatch.keys().isdisjoint(GPU_OPTIONS) else None,
        "time": minutes,
        "signal_delay_s": _seconds_of_warning(requested["time_warning"], minutes),
        "partition": requested["partition"],
        "cpus_per_task": requested["cpus"],
        "mem": requested["mem"],
        "setup": ([] if gpus else ["export CUDA_VISIBLE_DEVICES="]) + requested["setup"] or None,
        "srun_args": _srun_arguments(requested["srun"], requested["cpus"]),
        # requeued after preemption or node failure
        "additional_parameters": sbatch if "no-requeue" in sbatch else {"requeue": True, **sbatch},
    }
    return {key: value for key, value in parameters.items() if value is not None}


def _seconds_of_warning(given: int | None, minutes: int) -> int:
    seconds = given or min(MAX_WARNING_S, max(MIN_WARNING_S, minutes * 6))
    if seconds >= minutes * 60:  # SLURM would warn the run as soon as it begins
        raise UserError(f"--time-warning {seconds}: expected fewer seconds than the limit has, {minutes * 60}")
    return seconds


def _read_sbatch(options: Mapping[str, Any]) -> tuple[dict[str, str | bool], dict[str, str | bool]]:
    """Parse the options of sbatch, NAME=VALUE or NAME, and separate those that are also options of `launch`."""
    sbatch: dict[str, str | bool] = {}
    shared: dict[str, str | bool] = {}
    for word in options["sbatch"]:
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise UserError(f"--sbatch {word}: expected NAME=VALUE or NAME, such as account=vision or exclusive")
        if name in RESERVED:
            raise UserError(f"--sbatch {word}: the launcher sets --{name} itself; omit it")
        if name in SHARED and options[name] is not None:
            raise UserError(f"--sbatch {word}: given as --{name} {options[name]} already")
        if name == "nodes" and not value.isdecimal():
            raise UserError(f"--sbatch {word}: expected a number of nodes, such as nodes=2")
        (shared if name in SHARED else sbatch)[name] = value if equals else True
    return sbatch, shared


def _srun_arguments(srun: Sequence[str], cpus: int | None) -> list[str]:
    given = [f"--{argument.lstrip('-')}" for argument in srun]
    # srun of SLURM 22.05 to 23.02 does not inherit sbatch's number of CPUs
    inherited = [f"--cpus-per-task={cpus}"] if cpus else []
    # one task that fails must not leave the others waiting for it
    return ["--kill-on-bad-exit=1", *inherited, *given]


def read_time_limit(text: str) -> int:
    """Parse a time limit in any of SLURM's formats into minutes, rounded up.

    Raises:
        UserError: for any other text, or a limit of zero.

    Example:
        >>> read_time_limit("90"), read_time_limit("4:00:00"), read_time_limit("1-12"), read_time_limit("2:30")
        (90, 240, 2160, 3)
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    days, *parts = found.groups() if found else (None,)
    numbers = [int(part) for part in parts if part is not None]
    units = (3600, 60, 1) if days is not None or len(numbers) == 3 else (60, 1)
    seconds = 86400 * int(days or 0) + sum(number * unit for number, unit in zip(numbers, units, strict=False))
    if seconds == 0:
        raise UserError(f"--time {text}: expected minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, such as 4:00:00")
    return -(-seconds // 60)


def _as_list(value: Any) -> list[str]:
    """List option of a cluster file; options of sbatch may be given as a mapping."""
    if isinstance(value, Mapping):
        return [name if setting is True else f"{name}={setting}" for name, setting in value.items()]
    return [value] if isinstance(value, str) else list(map(str, value))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
