"""Run cells on this machine, one after the other, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.cells import Cell, expand
from beyondpixel.experiments.run_folder import FINISHED
from beyondpixel.experiments.starting import checkpoint_to_resume, differences, start_over


def launch(
    places: Sequence[str | Path],
    *,
    seeds: Sequence[int],
    output: Path,
    overrides: Mapping[str, Any],
    overwrite: bool = False,
    dry_run: bool = False,
) -> list[Cell]:
    """Train and test every cell that is not done yet.

    Args:
        places: spec files, folders or names of tables.
        seeds: of each row.
        output: the folder that holds the tables' folders.
        overrides: dotted config keys that win over every spec.
        overwrite: replace finished runs instead of keeping them.
        dry_run: check everything and show what would run.

    Returns:
        All cells, done ones included.

    Raises:
        UserError: if a spec is wrong, if a finished run was made with another config, or, after all others have
            run, if a cell failed.
    """
    console = Console()
    with console.status("Checking the specs ..."):
        cells = expand(places, seeds=seeds, output=output, overrides=overrides)
    waiting = [cell for cell in cells if overwrite or not _is_done(cell)]
    unfinished = [] if overwrite else [cell for cell in cells if cell.folder.state["status"] not in FINISHED]
    resume = {cell.name: checkpoint_to_resume(cell.folder, cell.config) for cell in unfinished}
    console.print(_overview(cells, waiting, resume))
    if dry_run:
        return cells
    failed = []
    for number, cell in enumerate(waiting, start=1):
        console.rule(f"[bold]{number}/{len(waiting)}[/bold] {cell.name} → {cell.folder.path}", align="left")
        if overwrite:
            start_over(cell.folder)
        cell.prepare()
        if _run(cell) != 0:
            failed.append(cell)
            console.print(f"[red]{cell.name} failed[/red]: {cell.folder.state.get('error') or 'see above'}")
    if failed:
        names = ", ".join(cell.name for cell in failed)
        raise UserError(f"{len(failed)} of {len(waiting)} runs failed: {names}; launch again to retry them")
    return cells


def _is_done(cell: Cell) -> bool:
    if cell.folder.state["status"] != "done":
        return False
    changed = differences(cell.folder.config, cell.config)
    if changed:
        raise UserError(
            f"{cell.folder.path} holds a finished run of another config ({'; '.join(changed[:5])}), which is kept; "
            "add --overwrite to replace it, or choose another --output"
        )
    return True


def _run(cell: Cell) -> int:
    command = [sys.executable, "-m", "beyondpixel.experiments.launch.cell", str(cell.folder.path)]
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        # Ctrl-C reaches the run as well; it saves a checkpoint before it ends
        process.wait()
        raise


def _overview(cells: Sequence[Cell], waiting: Sequence[Cell], resume: Mapping[str, Path | None]) -> Table:
    table = Table("run", "seed", "state", "folder", title=f"{len(waiting)} of {len(cells)} runs to do")
    for cell in cells:
        state = "done, kept"
        if cell in waiting:
            step = cell.folder.state.get("step", 0)
            state = f"resumes at step {step}" if resume.get(cell.name) else "starts"
        table.add_row(cell.spec.name, str(cell.seed), state, str(cell.folder.path))
    return table
