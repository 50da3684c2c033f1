"""W&B sweep whose agents execute the runs of a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from beyondpixel.experiments.axes import AXES, axes_of
from beyondpixel.experiments.plan import plan_runs
from beyondpixel.experiments.run.folder import write_atomically
from beyondpixel.experiments.spec import RUNS, RunSpec
from beyondpixel.experiments.wandb_arguments import project_name
from beyondpixel.experiments.yaml_files import in_one_line


def write_sweep(
    file: Path,
    specs: Sequence[str | Path],
    *,
    seeds: Sequence[int],
    output: Path,
    overrides: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Write a sweep of all runs, finished or not, and print how to start it.

    Its parameters are the seed and the row. A row is its spec with the axes in which the rows differ, as W&B's panels
    show them; as separate parameters they would make W&B try combinations that are not rows.

    Args:
        file: the YAML to write.
        specs: as for `load_specs`.
        seeds: of each row.
        output: the folder that holds the tables' folders.
        overrides: dotted config keys that win over every spec.
        options: additional options of the agents' `launch`, such as `{"gpus": 2}`; None values are omitted.

    Raises:
        UserError: for errors in the specs, as for a launch.
    """
    runs = plan_runs(specs, seeds=seeds[:1], output=output, overrides=overrides)
    axes = [axes_of(run.config) for run in runs]
    differing = [name for name in AXES if any(one[name] != axes[0][name] for one in axes)]
    rows = [
        {"spec": _location_of(run.spec), **{name: one[name] for name in differing}}
        for run, one in zip(runs, axes, strict=True)
    ]
    passed = {**overrides, **{key: value for key, value in options.items() if value is not None}}
    arguments = [text for key, value in passed.items() for text in (f"--{key}", in_one_line(value))]
    sweep = {
        "name": ", ".join(dict.fromkeys(run.spec.table for run in runs)),
        "project": project_name(),
        "method": "grid",
        "metric": {"name": "test/mIoU", "goal": "maximize"},
        "parameters": {"row": {"values": rows}, "seed": {"values": list(dict.fromkeys(seeds))}},
        "command": [
            *("${env}", sys.executable, "-P", "-m", "beyondpixel.experiments.launch.sweep", "${args_json}"),
            *("--output", str(output.absolute()), *arguments),
        ],
    }
    start = f"Start the sweep with: wandb sweep {file}"
    agents = "and its agents, each on its own machine or GPU, with the command it prints: wandb agent ENTITY/PROJECT/ID"
    write_atomically(
        file,
        f"# {start}\n# {agents}\n# Finished runs are kept, stopped ones resumed.\n"
        + yaml.safe_dump(sweep, sort_keys=False),
    )
    print(f"Wrote {file} ({len(rows)} rows, {len(set(seeds))} seeds); nothing was started.\n{start}\n{agents}")


def _location_of(spec: RunSpec) -> str:
    """Name of a spec of the package, whose path may differ on the agent's machine; path of any other spec."""
    if spec.file.is_relative_to(RUNS):
        return spec.name
    return str(spec.file if spec.file.stem == spec.row else spec.file.parent / spec.row)


def main() -> None:
    """Launch one run; called by an agent with its parameters as JSON and further arguments of `launch`."""
    from beyondpixel.experiments.cli import main as beyondpixel

    parameters = json.loads(sys.argv[1])
    beyondpixel(["launch", parameters["row"]["spec"], "--seeds", str(parameters["seed"]), *sys.argv[2:]])


if __name__ == "__main__":
    main()
