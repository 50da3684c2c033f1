"""Choice of the checkpoint to resume a run from, with checks that the run may be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.checkpoints import newest_whole_checkpoint
from beyondpixel.experiments.merge import leaves
from beyondpixel.experiments.run.folder import RunFolder

# keys that may change between attempts of a run, since they do not change its results
IGNORED_KEYS = ("data.init_args.root", "data.init_args.num_workers", "trainer.default_root_dir")


def checkpoint_to_resume(folder: RunFolder, config: Mapping[str, Any]) -> Path | None:
    """Find the checkpoint to resume a run from; None if it starts from scratch.

    Args:
        folder: the run's folder.
        config: the resolved config of the run that is about to start.

    Raises:
        UserError: if the folder holds a finished run, or an unfinished one of another config.
    """
    if folder.status.is_finished:
        raise UserError(
            f"{folder.path} holds a finished run, which is kept; "
            "add --overwrite to replace it, or choose another folder with --trainer.default_root_dir"
        )
    changed = differences(folder.config, config) if folder.has_checkpoint else []
    if changed:
        raise UserError(
            f"{folder.path} holds an unfinished run of another config ({'; '.join(changed[:5])}); "
            "add --overwrite to start from scratch, or undo the change to resume it"
        )
    return newest_whole_checkpoint(folder)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the changes between two configs, one line each, except those of `IGNORED_KEYS`.

    Example:
        >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
        ['a.b was 1 and is 3']
    """
    before, after = ({".".join(keys): value for keys, value in leaves(config)} for config in (old, new))
    keys = [*before, *(key for key in after if key not in before)]
    return [
        f"{key} was {before.get(key)} and is {after.get(key)}"
        for key in keys
        if before.get(key) != after.get(key) and key not in IGNORED_KEYS
    ]
