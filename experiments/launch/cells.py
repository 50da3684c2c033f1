"""From specs and seeds to cells, each with its folder and its resolved config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.experiments.specs import Spec, SpecError, find_specs, load_spec
from beyondpixel.experiments.training_cli import resolve_config


@dataclass(frozen=True)
class Cell:
    """One run to do.

    Attributes:
        spec: the row of the table.
        seed: the random seed.
        folder: the run's folder, which depends on the spec and the seed alone.
        config: the resolved config; of an evaluation, that of the run it tests, on one device.
        source: the run whose checkpoint is tested, where the spec says `evaluate`; None for a run that trains.
    """

    spec: Spec
    seed: int
    folder: RunFolder
    config: dict[str, Any]
    source: RunFolder | None = None

    @property
    def name(self) -> str:
        """`table/row seed<k>`."""
        return f"{self.spec.name} seed{self.seed}"

    @property
    def source_name(self) -> str:
        """`table/row seed<k>` of the run that is tested."""
        return f"{(self.spec.evaluate or {}).get('run')} seed{self.seed}"

    def prepare(self) -> None:
        """Write down who the run is, for the process that will do it."""
        asked = {} if self.source is None else {"evaluate": self.spec.evaluate, "source": str(self.source.path)}
        self.folder.config = self.config
        self.folder.record = {
            **self.folder.record,
            "name": self.spec.name,
            "table": self.spec.table,
            "row": self.spec.row,
            "seed": self.seed,
            "reference": self.spec.reference,
            **asked,
        }


def expand(
    places: Sequence[str | Path],
    *,
    seeds: Sequence[int],
    output: Path,
    overrides: Mapping[str, Any],
    mistakes: list[str],
) -> list[Cell]:
    """Every cell of the given specs, row by row.

    Args:
        places: as for `find_specs`.
        seeds: of each row.
        output: the folder that holds the tables' folders.
        overrides: dotted config keys that win over every spec.
        mistakes: takes what is wrong with a spec, so that all mistakes can be told at once.
    """
    cells: list[Cell] = []
    for place in find_specs(places):
        try:
            spec = load_spec(place, overrides)
            resolved = resolve_config(spec.config, spec.origin)
        except SpecError as error:
            mistakes += error.mistakes
            continue
        for seed in dict.fromkeys(seeds):
            folder = RunFolder(output / spec.table / spec.row / f"seed{seed}")
            trainer = {**resolved["trainer"], "default_root_dir": str(folder.path)}
            source = None
            if spec.evaluate is not None:
                source = RunFolder(output / spec.evaluate["run"] / f"seed{seed}")
                trainer |= {"devices": 1, "num_nodes": 1}  # several would each see a part of the images
            cells.append(Cell(spec, seed, folder, {**resolved, "seed_everything": seed, "trainer": trainer}, source))
    return cells
