"""The options of `beyondpixel launch`; nothing slow is imported before they are understood."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from beyondpixel.experiments.errors import UserError

DESCRIPTION = """\
Train and test every row of the given run specs with every seed, here or on a SLURM cluster.

Each run has a folder, OUTPUT/TABLE/ROW/seedK, which decides what a launch does: finished runs are kept, running and
queued ones left alone, interrupted ones resumed at their last checkpoint, failed ones shown and left alone until
--retry-failed. So the same command can be given again at any time, and twice at once. Rows that train nothing but
evaluate another row, with a CRF say, come after that row; launched without it, they need it finished.

Config keys can be overridden for all rows: --data.root DIR, --trainer.max_steps 100, --model.lr 0.01.
"""
# options that mean something to one executor only
SLURM_ONLY = ("nodes", "partition", "time", "max_parallel", "cpus", "mem", "sbatch")


def add_launch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "launch",
        help="train and test run specs, each with several seeds, here or on a SLURM cluster",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("specs", nargs="+", metavar="SPEC", help="a YAML file, a folder of them, or a table's name")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="K", help="seeds of each row (default: 1)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs"), metavar="DIR", help="where run folders go (default: outputs)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything and show what would run")
    parser.add_argument("--retry-failed", action="store_true", help="do failed runs again")
    parser.add_argument("--overwrite", action="store_true", help="replace runs that are there, finished ones included")
    parser.add_argument(
        "--executor", choices=("local", "slurm"), default="local", help="this machine (default), or SLURM's sbatch"
    )
    parser.add_argument(
        "--gpus", type=_count, metavar="N", help="GPUs of one run, on each of its nodes (default: 1; 0 for CPUs only)"
    )
    parser.add_argument(
        "--as-wandb-sweep", type=Path, metavar="FILE", help="write a sweep for W&B's agents there, and start nothing"
    )
    here = parser.add_argument_group("on this machine")
    here.add_argument(
        "--jobs", type=_positive, metavar="N", help="runs at a time (default: one a GPU; one on a machine without)"
    )
    cluster = parser.add_argument_group("on a SLURM cluster (an array job, one run an element)")
    cluster.add_argument("--nodes", type=_positive, metavar="N", help="nodes of one run (default: 1)")
    cluster.add_argument("--partition", metavar="NAME", help="default: the cluster's")
    cluster.add_argument(
        "--time", metavar="LIMIT", help="minutes or HH:MM:SS (default: 4:00:00); a run that needs longer is requeued"
    )
    cluster.add_argument("--max-parallel", type=_positive, metavar="K", help="trainings at a time (default: all)")
    cluster.add_argument("--cpus", type=_positive, metavar="N", help="CPUs for each GPU (default: the cluster's)")
    cluster.add_argument("--mem", metavar="SIZE", help="memory of a node, such as 32G (default: the cluster's)")
    cluster.add_argument(
        "--sbatch", nargs="+", metavar="KEY=VALUE", help="further options of sbatch, such as account=vision qos=long"
    )


def run_launch(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Do what the options say.

    Args:
        options: as parsed.
        rest: the words that the parser does not know: overrides of config keys.

    Raises:
        UserError: if options don't fit each other, and whatever `launch` raises.
    """
    # cheap checks first, then the imports that take seconds
    sbatch = _pairs(options.sbatch or [])
    if options.executor == "local":
        given = [name for name in SLURM_ONLY if getattr(options, name) is not None]
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UserError(f"{names}: only for --executor slurm; on this machine there are --jobs and --gpus")
    elif options.jobs is not None:
        raise UserError("--jobs: only for this machine; --executor slurm has --max-parallel")

    from beyondpixel.experiments.specs import parse_overrides

    overrides = parse_overrides(rest)
    if options.as_wandb_sweep is not None:
        from beyondpixel.experiments.launch.sweep import write_sweep

        write_sweep(
            options.as_wandb_sweep, options.specs, seeds=options.seeds, output=options.output, overrides=overrides
        )
        return

    from beyondpixel.experiments.launch.launching import launch
    from beyondpixel.experiments.launch.resources import Resources, minutes_of

    resources = Resources(
        gpus=1 if options.gpus is None else options.gpus,
        nodes=options.nodes or 1,
        minutes=minutes_of(options.time or "4:00:00"),
        partition=options.partition,
        max_parallel=options.max_parallel,
        cpus=options.cpus,
        memory=options.mem,
        options=sbatch,
    )
    launch(
        options.specs,
        seeds=options.seeds,
        output=options.output,
        overrides=overrides,
        overwrite=options.overwrite,
        retry_failed=options.retry_failed,
        dry_run=options.dry_run,
        jobs=options.jobs,
        gpus=options.gpus,
        slurm=resources if options.executor == "slurm" else None,
    )


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs = dict(word.removeprefix("--").partition("=")[::2] for word in words)
    if not all("=" in word for word in words):
        raise UserError(f"--sbatch {' '.join(words)}: expected KEY=VALUE, such as account=vision")
    return pairs


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number
