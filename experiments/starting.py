"""What to do with a run folder that is already there: keep, resume, replace or refuse."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run_folder import RunFolder


def checkpoint_to_resume(folder: RunFolder, config: Mapping[str, Any]) -> Path | None:
    """The checkpoint from which a run goes on; None if it starts from nothing.

    Args:
        folder: the run's folder.
        config: the resolved config of the run that is about to start.

    Raises:
        UserError: if a finished run lies there, or an unfinished one of another config.
    """
    if folder.finished:
        raise UserError(
            f"{folder.path} holds a finished run, which is kept; "
            "add --overwrite to replace it, or choose another folder with --trainer.default_root_dir"
        )
    changed = differences(folder.config, config) if folder.last_checkpoint.exists() else []
    if changed:
        raise UserError(
            f"{folder.path} holds an unfinished run of another config ({'; '.join(changed[:5])}); "
            "add --overwrite to start anew, or undo the change to resume it"
        )
    return folder.last_checkpoint if folder.last_checkpoint.exists() else None


def start_over(folder: RunFolder) -> None:
    """Remove what an earlier run left in its folder, W&B's files included; other files stay."""
    shutil.rmtree(folder.path / "wandb", ignore_errors=True)
    folder.clear()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two configs, a line each.

    Example:
        >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
        ['a.b was 1 and is 3']
    """
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = [*before, *(key for key in after if key not in before)]
    return [f"{k} was {before.get(k)} and is {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
