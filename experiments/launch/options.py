"""Options of `launch`: those of a cluster's file, what fits which executor, and what SLURM is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.resources import Resources, read_sbatch, read_time_limit
from beyondpixel.experiments.merge import suggestion
from beyondpixel.experiments.yaml_files import read_yaml

LISTS = ("sbatch", "srun", "setup")
SLURM_ONLY = ("nodes", "partition", "time", "time_warning", "max_parallel", "cpus", "mem", *LISTS)
CLUSTER_KEYS = (*SLURM_ONLY, "gpus", "executor")
LEAST = {"gpus": 0, "jobs": 1, "nodes": 1, "max_parallel": 1, "cpus": 1, "time_warning": 1}
DEFAULT_TIME = "4:00:00"


def read_options(given: Mapping[str, Any], cluster: Path | None) -> dict[str, Any]:
    """The options of the command line, which win, and those of a cluster's file; lists are joined.

    Args:
        given: of the command line; None for what was not given.
        cluster: a YAML file with some of `CLUSTER_KEYS`.

    Raises:
        UserError: for an unknown key, a number out of range, or an option of the other executor.
    """
    preset = {} if cluster is None else {key.replace("-", "_"): value for key, value in read_yaml(cluster).items()}
    for key in preset:
        if key not in CLUSTER_KEYS:
            raise UserError(f"--cluster {cluster}: {key}: unknown option; {suggestion(key, CLUSTER_KEYS)}")
    options = {**given, **{key: value for key, value in preset.items() if given[key] is None}}
    options |= {key: [*_words(preset.get(key, [])), *given[key]] for key in LISTS}
    for name, least in LEAST.items():
        value = options[name]
        if value is not None and (not isinstance(value, int) or value < least):
            raise UserError(f"{_flag(name)} {value}: expected a number, {least} or more")
    if options["executor"] == "slurm" and options["jobs"] is not None:
        raise UserError("--jobs: only for this machine; --executor slurm has --max-parallel")
    foreign = [] if options["executor"] == "slurm" else [_flag(name) for name in SLURM_ONLY if options[name]]
    if foreign:
        raise UserError(f"{', '.join(foreign)}: only for --executor slurm; on this machine there are --jobs and --gpus")
    return options


def make_resources(options: Mapping[str, Any]) -> Resources:
    """What SLURM is asked for; a time limit among the options of sbatch counts as ours.

    Raises:
        UserError: for an option given twice or one that SLURM would not understand.
    """
    sbatch = read_sbatch(options["sbatch"])
    own: dict[str, Any] = {name: sbatch.pop(name) for name in ("time", "partition", "mem", "nodes") if name in sbatch}
    for name, value in own.items():
        if options[name] is not None:
            raise UserError(f"--sbatch {name}={value}: given as --{name} {options[name]} already")
    asked: dict[str, Any] = {**options, **own}
    return Resources(
        gpus=1 if asked["gpus"] is None else asked["gpus"],
        nodes=int(asked["nodes"] or 1),
        minutes=read_time_limit(str(asked["time"] or DEFAULT_TIME)),
        warning_s=asked["time_warning"],
        partition=asked["partition"],
        max_parallel=asked["max_parallel"],
        cpus=asked["cpus"],
        mem=asked["mem"],
        sbatch=sbatch,
        srun=[word if word.startswith("-") else f"--{word}" for word in asked["srun"]],
        setup=asked["setup"],
    )


def _words(value: Any) -> list[str]:
    """A list of a cluster's file; options of sbatch may be written as keys and values."""
    if isinstance(value, Mapping):
        return [name if setting is True else f"{name}={setting}" for name, setting in value.items()]
    return [value] if isinstance(value, str) else list(map(str, value))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
