"""A W&B sweep whose agents run the cells of a table, for those who hand out work by W&B."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.plan import make_plan
from beyondpixel.experiments.run_folder import write_atomically
from beyondpixel.experiments.specs import RUNS, Spec
from beyondpixel.experiments.tracking import project_name

HEADER = """\
# Every run of {names}: {rows} rows, {seeds} seeds.
# Start it:   wandb sweep {file}
# Then, on each machine, in this folder, the command that it prints: wandb agent ENTITY/PROJECT/SWEEP_ID
# Runs that are finished are not done again; stopped ones resume.
"""


def write_sweep(
    file: Path, places: Sequence[str | Path], *, seeds: Sequence[int], output: Path, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the sweep of all cells, and say how to start it.

    Args:
        file: the YAML to write.
        places: as for `find_specs`.
        seeds: of each row.
        output: the folder that holds the tables' folders.
        overrides: dotted config keys that win over every spec.

    Returns:
        What was written.

    Raises:
        UserError: for mistakes in the specs, as for a launch.
    """
    plan = make_plan(places, seeds=seeds, output=output, overrides=overrides)
    specs = list(dict.fromkeys(_place_of(cell.spec) for cell in plan.cells if cell.source is None))
    # an agent may be the first to ask for a row, and does not wait for others
    evaluations = list(dict.fromkeys(_place_of(cell.spec) for cell in plan.cells if cell.source is not None))
    if not specs:
        raise UserError(f"{', '.join(evaluations)}: train nothing; beyondpixel launch does them without a sweep")
    names = ", ".join(dict.fromkeys(cell.spec.table for cell in plan.cells))
    changes = [word for key, value in overrides.items() for word in (f"--{key}", yaml.safe_dump(value).split("\n")[0])]
    sweep = {
        "name": names,
        "project": project_name(),
        "method": "grid",
        "metric": {"name": "test/mIoU", "goal": "maximize"},
        "parameters": {"spec": {"values": specs}, "seed": {"values": list(dict.fromkeys(seeds))}},
        "command": [
            "${env}",
            sys.executable,
            "-m",
            "beyondpixel.experiments.launch.sweep",
            "${args}",
            "--output",
            str(output.absolute()),
            *changes,
        ],
    }
    header = HEADER.format(names=names, rows=len(specs), seeds=len(set(seeds)), file=file)
    write_atomically(file, header + yaml.safe_dump(sweep, sort_keys=False))
    print(
        f"Wrote {file}; nothing was started.\nStart the sweep with: wandb sweep {file}\nand run its agents, each on a "
        "machine or GPU of its own, with the command that it prints: wandb agent ENTITY/PROJECT/SWEEP_ID"
    )
    if evaluations:
        print(
            f"Not in it, because they test rows that it trains: {', '.join(evaluations)}; launch them when it is done"
        )
    return sweep


def _place_of(spec: Spec) -> str:
    """By name where it comes with the package, which may be installed elsewhere on the agent's machine."""
    if spec.file.is_relative_to(RUNS):
        return spec.name
    return str(spec.file if spec.file.stem == spec.row else spec.file.parent / spec.row)


def main() -> None:
    """What an agent calls, with `--spec=FILE --seed=K` and what follows: one cell."""
    words = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:3])
    from beyondpixel.experiments.cli import main as beyondpixel

    if set(words) != {"spec", "seed"}:
        raise UserError(f"expected --spec=FILE --seed=K first, got {' '.join(sys.argv[1:3])}")
    beyondpixel(["launch", words["spec"], "--seeds", words["seed"], *sys.argv[3:]])


if __name__ == "__main__":
    main()
