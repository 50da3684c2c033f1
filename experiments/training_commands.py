"""`beyondpixel fit`, `validate` and `test`: one run by hand, with LightningCLI's keys."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from beyondpixel.experiments.disk_space import full_disk_as_user_error
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.checkpoints import find_checkpoint, verify
from beyondpixel.experiments.launch.lock import HeldError, RunLock
from beyondpixel.experiments.lightning_cli import DEFAULT_FOLDER, SegmentationCLI
from beyondpixel.experiments.resume import checkpoint_to_resume
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.run.processes import process_rank

CONFIG_OPTIONS = ("--config", "-c")


def fit(arguments: Sequence[str]) -> None:
    """Train in a run folder, `trainer.default_root_dir`: start, resume what is unfinished, or keep what is finished."""
    from beyondpixel.experiments.training import train

    cli = SegmentationCLI(arguments)
    folder = RunFolder(cli.resolved["trainer"]["default_root_dir"] or DEFAULT_FOLDER)
    overwrite = bool(cli.options["overwrite"])
    try:
        with RunLock(folder.lock_file) if process_rank() == 0 else nullcontext():
            resume = None if overwrite else checkpoint_to_resume(folder, cli.resolved)
            if cli.options["ckpt_path"] is not None:
                resume = verify(cli.options["ckpt_path"])
            with full_disk_as_user_error(folder.path):
                train(folder, cli.resolved, resume=resume, overwrite=overwrite, test=False)
    except HeldError as error:
        raise UserError(f"{error}; wait for it, or choose another --trainer.default_root_dir") from error
    print(f"Run folder: {folder.path}\nTest it with: beyondpixel test --ckpt_path {folder.last_checkpoint}")


def validate(arguments: Sequence[str]) -> None:
    """Score a checkpoint on the validation images."""
    _evaluate("validate", "val", arguments)


def test(arguments: Sequence[str]) -> None:
    """Score a checkpoint on the test images."""
    _evaluate("test", "test", arguments)


def _evaluate(name: str, stage: str, arguments: Sequence[str]) -> None:
    if any(argument in ("-h", "--help") for argument in arguments):
        SegmentationCLI(arguments)
    given = _value_of(arguments, ("--ckpt_path",))
    config = _value_of(arguments, CONFIG_OPTIONS)
    if given is None:
        where = f" (such as --ckpt_path last, of the run that {config} belongs to)" if config else ""
        raise UserError(f"--ckpt_path: expected the checkpoint to score, got none{where}")
    checkpoint = find_checkpoint(given, Path(config) if config else None)
    own_config = checkpoint.resolve().parent.parent / "config.yaml"
    if config is None and own_config.exists():
        arguments = [arguments[0], f"--config={own_config}", *arguments[1:]]
    cli = SegmentationCLI(arguments)
    from beyondpixel.experiments.inference.evaluate_run import evaluate_checkpoint

    folder = evaluate_checkpoint(name, checkpoint, cli.resolved, inferer=cli.options["inferer"])
    print(f"Scored {checkpoint} on the {stage} images" + (f"; see {folder.path}" if folder else ""))


def _value_of(arguments: Sequence[str], options: Sequence[str]) -> str | None:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = argument.partition("=")
        if option in options:
            return value if equals else following
    return None
