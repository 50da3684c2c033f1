"""What to do with each cell, from what lies in its run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.cells import Cell, expand
from beyondpixel.experiments.launch.checks import check_output, check_parts, check_space
from beyondpixel.experiments.launch.queue import living_jobs
from beyondpixel.experiments.launch.situations import Kind, Situation, situation_of


@dataclass(frozen=True)
class Plan:
    """All cells of a launch with their situations.

    Attributes:
        cells: row by row.
        situations: one a cell.
    """

    cells: Sequence[Cell]
    situations: Sequence[Situation]

    @property
    def work(self) -> list[Cell]:
        """The cells that the launch does."""
        return [cell for cell, situation in self if situation.is_work]

    def of_kind(self, kind: Kind) -> list[Cell]:
        """The cells in a situation."""
        return [cell for cell, situation in self if situation.kind == kind]

    def __iter__(self) -> Any:
        return iter(zip(self.cells, self.situations, strict=True))


def make_plan(
    places: Sequence[str | Path],
    *,
    seeds: Sequence[int],
    output: Path,
    overrides: Mapping[str, Any],
    overwrite: bool = False,
    retry_failed: bool = False,
    checks: Sequence[Callable[[list[str]], None]] = (),
) -> Plan:
    """Every cell with what is to be done, everything checked.

    Args:
        places: as for `find_specs`.
        seeds: of each row.
        output: the folder that holds the tables' folders.
        overrides: dotted config keys that win over every spec.
        overwrite: replace runs that are there.
        retry_failed: do failed runs again.
        checks: of the executor; each takes the list of mistakes and adds to it.

    Raises:
        UserError: listing all mistakes of all specs, so that nothing starts before everything is right.
    """
    mistakes: list[str] = []
    cells = expand(places, seeds=seeds, output=output, overrides=overrides, mistakes=mistakes)
    situations = _situations(cells, mistakes, overwrite=overwrite, retry_failed=retry_failed)
    kept = [cell for cell in cells if cell.folder.path in situations]
    plan = Plan(kept, [situations[cell.folder.path] for cell in kept])
    sizes = check_parts(plan.work, mistakes, anew=overwrite)
    if check_output(output, mistakes):
        check_space(plan.work, sizes, output, mistakes)
    for check in checks:
        check(mistakes)
    if mistakes:
        raise UserError("nothing was started:\n" + "\n".join(dict.fromkeys(mistakes)))
    return plan


def _situations(
    cells: Sequence[Cell], mistakes: list[str], *, overwrite: bool, retry_failed: bool
) -> dict[Path, Situation]:
    """Where each cell is, by its folder; sources before the evaluations that need them."""
    folders = [folder for cell in cells for folder in (cell.folder, cell.source) if folder is not None]
    jobs = living_jobs() if any("job" in folder.state for folder in folders) else {}
    found: dict[Path, Situation] = {}
    refused: set[Path] = set()
    for cell in sorted(cells, key=lambda cell: cell.source is not None):
        if cell.source is not None and cell.source.path in refused:
            continue
        source = None if cell.source is None else found.get(cell.source.path)
        try:
            found[cell.folder.path] = situation_of(
                cell, overwrite=overwrite, retry_failed=retry_failed, jobs=jobs, source=source
            )
        except UserError as error:
            mistakes.append(str(error))
            refused.add(cell.folder.path)
    return found
