"""`beyondpixel fit`, `validate` and `test`: one run by hand, with LightningCLI's keys."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.checkpoints import verify
from beyondpixel.experiments.launch.lock import HeldError, RunLock
from beyondpixel.experiments.lightning_cli import DEFAULT_FOLDER, SegmentationCLI
from beyondpixel.experiments.resume import checkpoint_to_resume
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.run.processes import process_rank

CONFIG_OPTIONS = ("--config", "-c")


def fit(words: Sequence[str]) -> None:
    """Train in a run folder, `trainer.default_root_dir`: start, resume what is unfinished, or keep what is finished."""
    from beyondpixel.experiments.training import train

    cli = SegmentationCLI(words)
    folder = RunFolder(cli.resolved["trainer"]["default_root_dir"] or DEFAULT_FOLDER)
    overwrite = bool(cli.options["overwrite"])
    try:
        with RunLock(folder.lock_file) if process_rank() == 0 else nullcontext():
            resume = None if overwrite else checkpoint_to_resume(folder, cli.resolved)
            if cli.options["ckpt_path"] is not None:
                resume = verify(cli.options["ckpt_path"])
            train(folder, cli.resolved, resume=resume, overwrite=overwrite, test=False)
    except HeldError as error:
        raise UserError(f"{error}; wait for it, or choose another --trainer.default_root_dir") from error
    print(f"Run folder: {folder.path}\nTest it with: beyondpixel test --ckpt_path {folder.last_checkpoint}")


def validate(words: Sequence[str]) -> None:
    """Score a checkpoint on the validation images."""
    _evaluate("validate", "val", words)


def test(words: Sequence[str]) -> None:
    """Score a checkpoint on the test images."""
    _evaluate("test", "test", words)


def _evaluate(name: str, stage: str, words: Sequence[str]) -> None:
    if any(word in ("-h", "--help") for word in words):
        SegmentationCLI(words)
    checkpoint, words = _checkpoint_and_config(words)
    cli = SegmentationCLI(words)
    folder = RunFolder(checkpoint.resolve().parent.parent)
    own_run = folder if folder.config_file.exists() else None
    from beyondpixel.experiments.inference.evaluate_run import evaluate_run
    from beyondpixel.experiments.inference.inferers import parse_inferer
    from beyondpixel.experiments.training import evaluate

    if cli.options["inferer"] is None:
        evaluate(name, cli.resolved, checkpoint, folder=own_run)
    elif own_run is not None and stage == "test":
        evaluate_run(own_run, cli.options["inferer"], checkpoint=checkpoint, config=cli.resolved)
    else:
        evaluate(name, cli.resolved, checkpoint, folder=None, inferer=parse_inferer(cli.options["inferer"]))
    print(f"Scored {checkpoint} on the {stage} images" + (f"; see {folder.path}" if own_run else ""))


def _checkpoint_and_config(words: Sequence[str]) -> tuple[Path, list[str]]:
    """The checkpoint that is meant, verified, and the words with the config of its run and its full path."""
    given = _value_of(words, ("--ckpt_path",))
    config = _value_of(words, CONFIG_OPTIONS)
    if given is None:
        where = f" (such as --ckpt_path last, of the run that {config} belongs to)" if config else ""
        raise UserError(f"--ckpt_path: expected the checkpoint to score, got none{where}")
    if given in ("last", "best"):
        if config is None:
            raise UserError(f"--ckpt_path {given}: whose? Add --config RUN/config.yaml, or give the file's path")
        checkpoint = Path(config).resolve().parent / "checkpoints" / f"{given}.ckpt"
    else:
        checkpoint = Path(given)
    verify(checkpoint)
    own_config = checkpoint.resolve().parent.parent / "config.yaml"
    rest = _without(words, "--ckpt_path")
    if config is None and own_config.exists():
        rest = [rest[0], f"--config={own_config}", *rest[1:]]
    return checkpoint, [*rest, f"--ckpt_path={checkpoint}"]


def _value_of(words: Sequence[str], options: Sequence[str]) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option in options:
            return value if equals else following
    return None


def _without(words: Sequence[str], option: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word == option:
            skip = True
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept
