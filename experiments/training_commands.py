"""`beyondpixel fit`, `validate` and `test`: one run by hand, with LightningCLI's keys."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from beyondpixel.experiments.disk_space import full_disk_as_user_error
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.checkpoints import find_checkpoint
from beyondpixel.experiments.launch.lock import RunLock
from beyondpixel.experiments.lightning_cli import DEFAULT_FOLDER, peek, read_command_line
from beyondpixel.experiments.resume import checkpoint_to_resume
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.run.processes import process_rank


def fit(arguments: Sequence[str]) -> None:
    """Train in a run folder, `trainer.default_root_dir`: start, resume what is unfinished, or keep what is finished."""
    from beyondpixel.experiments.training import train

    cli = read_command_line("fit", arguments[1:])
    folder = RunFolder(cli.resolved["trainer"]["default_root_dir"] or DEFAULT_FOLDER)
    first = process_rank() == 0
    with RunLock(folder.lock_file) if first else nullcontext():
        if first:
            folder.remove_temporary_files()
        resume = None if cli.overwrite else checkpoint_to_resume(folder, cli.resolved)
        if cli.ckpt_path is not None:
            resume = find_checkpoint(cli.ckpt_path, _last_config(peek(arguments)[0]))
        with full_disk_as_user_error(folder.path):
            train(folder, cli.resolved, resume=resume, overwrite=cli.overwrite, test=False)
    print(f"Run folder: {folder.path}\nTest it with: beyondpixel test --ckpt_path {folder.last_checkpoint}")


def score(arguments: Sequence[str]) -> None:
    """Score a checkpoint on the validation or the test images, as the first word says: `validate` or `test`."""
    name, *words = arguments
    if any(word in ("-h", "--help") for word in words):
        read_command_line(name, words)
    given, _ = peek(words)
    config = _last_config(given)
    if given.ckpt_path is None:
        where = f" (such as --ckpt_path last, of the run that {config} belongs to)" if config else ""
        raise UserError(f"--ckpt_path: expected the checkpoint to score, got none{where}")
    checkpoint = find_checkpoint(given.ckpt_path, config)
    own_config = checkpoint.resolve().parent.parent / "config.yaml"
    if config is None and own_config.exists():
        words = [f"--config={own_config}", *words]
    cli = read_command_line(name, words)
    from beyondpixel.experiments.inference.evaluate_run import evaluate_checkpoint

    folder = evaluate_checkpoint(name, checkpoint, cli.resolved, inferer=cli.inferer)
    images = {"validate": "val", "test": "test"}[name]
    print(f"Scored {checkpoint} on the {images} images" + (f"; see {folder.path}" if folder else ""))


def _last_config(given: Namespace) -> Path | None:
    """The config file that `last` and `best` refer to."""
    return Path(given.config[-1]) if given.config else None
