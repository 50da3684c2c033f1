"""Expand specs and seeds into runs, each with its folder and its resolved config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beyondpixel.experiments.axes import axes_of
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.resolve import MAX_SEED, resolve
from beyondpixel.experiments.resume import differences
from beyondpixel.experiments.run.folder import RunFolder, Status
from beyondpixel.experiments.spec import RunSpec, SpecError, load_specs


@dataclass(frozen=True)
class Run:
    """A row of a table with a seed.

    Attributes:
        spec: the row.
        seed: the random seed.
        folder: the run's folder, which depends on the spec and the seed alone.
        config: the resolved config.
    """

    spec: RunSpec
    seed: int
    folder: RunFolder
    config: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """`table/row seed<k>`."""
        return f"{self.spec.name} seed{self.seed}"

    def check_config(self, status: Status, config: Mapping[str, Any]) -> None:
        """Check that the folder, which has this status and config, holds no run of another config.

        Raises:
            UserError: naming the keys that differ, if a run that is finished or has a checkpoint is there.
        """
        there = status.is_finished or self.folder.has_checkpoint
        changed = differences(config, self.config) if there else []
        if changed:
            raise UserError(
                f"{self.folder.path} holds {'a finished' if status.is_finished else 'an unfinished'} run of another "
                f"config ({'; '.join(changed[:5])}), which is kept; add --overwrite to replace it, or choose another "
                "--output"
            )

    def prepare(self, **more: Any) -> None:
        """Write config and record for the process that will execute the run.

        Args:
            more: additional entries of the record.

        Raises:
            UserError: if the folder holds a run of another config.
        """
        self.check_config(self.folder.status, self.folder.config)
        self.folder.config = self.config
        self.folder.record = {
            **self.folder.record,
            "name": self.spec.name,
            "table": self.spec.table,
            "row": self.spec.row,
            "seed": self.seed,
            "axes": axes_of(self.config),
            "reference": self.spec.reference,
            "evaluations": list(self.spec.evaluations),
            **more,
        }


def plan_runs(
    locations: Sequence[str | Path], *, seeds: Sequence[int], output: Path, overrides: Mapping[str, Any]
) -> list[Run]:
    """List every run of the given specs, row by row.

    Args:
        locations: as for `load_specs`.
        seeds: the seeds of each row.
        output: the folder that holds the tables' folders.
        overrides: dotted config keys that override every spec.

    Raises:
        SpecError: with every error of every spec.
        UserError: for a seed out of range.
    """
    wrong = [seed for seed in seeds if not 0 <= seed <= MAX_SEED]
    if wrong:
        raise UserError(f"--seeds {' '.join(map(str, wrong))}: expected integers from 0 to {MAX_SEED}")
    runs: list[Run] = []
    errors: list[str] = []
    try:
        specs = load_specs(locations, overrides)
    except SpecError as error:
        specs, errors = list(error.valid), list(error.errors)
    for spec in specs:
        try:
            resolved = resolve(spec)
        except SpecError as error:
            errors += error.errors
            continue
        for seed in dict.fromkeys(seeds):
            folder = RunFolder(output / spec.table / spec.row / f"seed{seed}")
            trainer = {**resolved["trainer"], "default_root_dir": str(folder.path)}
            runs.append(Run(spec, seed, folder, {**resolved, "seed_everything": seed, "trainer": trainer}))
    if errors:
        raise SpecError(errors, runs)
    return runs
