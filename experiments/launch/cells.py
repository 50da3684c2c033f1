"""From specs and seeds to cells, each with its folder and its resolved config, all checked before any starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.layers import Origin
from beyondpixel.experiments.rebuilding import build_data
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.experiments.specs import Spec, SpecError, find_specs, load_spec
from beyondpixel.experiments.training_cli import own_error, resolve_config


@dataclass(frozen=True)
class Cell:
    """One run to do.

    Attributes:
        spec: the row of the table.
        seed: the random seed.
        folder: the run's folder, which depends on the spec and the seed alone.
        config: the resolved config.
    """

    spec: Spec
    seed: int
    folder: RunFolder
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """`table/row seed<k>`."""
        return f"{self.spec.name} seed{self.seed}"

    def prepare(self) -> None:
        """Write down who the run is, for the process that will do it."""
        self.folder.config = self.config
        self.folder.record = {
            **self.folder.record,
            "name": self.spec.name,
            "table": self.spec.table,
            "row": self.spec.row,
            "seed": self.seed,
            "reference": self.spec.reference,
        }


def expand(
    places: Sequence[str | Path], *, seeds: Sequence[int], output: Path, overrides: Mapping[str, Any]
) -> list[Cell]:
    """Every cell of the given specs, row by row.

    Args:
        places: as for `find_specs`.
        seeds: of each row.
        output: the folder that holds the tables' folders.
        overrides: dotted config keys that win over every spec.

    Raises:
        UserError: listing every spec that is wrong, so that nothing starts before all are right.
    """
    cells: list[Cell] = []
    mistakes: list[str] = []
    looked_for: list[Any] = []
    for place in find_specs(places):
        try:
            spec = load_spec(place, overrides)
            resolved = resolve_config(spec.config, spec.origin)
            for seed in seeds:
                folder = RunFolder(output / spec.table / spec.row / f"seed{seed}")
                trainer = {**resolved["trainer"], "default_root_dir": str(folder.path)}
                cells.append(Cell(spec, seed, folder, {**resolved, "seed_everything": seed, "trainer": trainer}))
            if resolved["data"] not in looked_for:
                looked_for.append(resolved["data"])
                find_data(resolved, spec.origin)
        except SpecError as error:
            mistakes += error.mistakes
    if mistakes:  # many rows may share one wrong line
        raise UserError("nothing was started:\n" + "\n".join(dict.fromkeys(mistakes)))
    return cells


def find_data(config: Mapping[str, Any], origin: Origin) -> None:
    """Look for the data that a config names, without reading images.

    Raises:
        SpecError: if something is missing or an argument is out of range, naming where it was given.
    """
    try:
        data = build_data(config)
        for stage in ("fit", "test"):
            data.setup(stage)
    except ValueError as error:
        said = str(own_error(error) or error)
        place = origin.place_of_complaint(said, otherwise=("data", "init_args", "root"))
        raise SpecError([f"{place}: {said}"]) from error
