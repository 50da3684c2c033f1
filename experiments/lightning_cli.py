"""`beyondpixel fit | validate | test`: train or score one model, configured with LightningCLI's keys."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import re
import shlex
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace

from beyondpixel.experiments.allowed_imports import check_imports
from beyondpixel.experiments.build import make_parser
from beyondpixel.experiments.disk_space import full_disk_as_user_error
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.evaluation_recorder import STAGES
from beyondpixel.experiments.inference.checkpoints import find_checkpoint, read_checkpoint
from beyondpixel.experiments.inference.inferers import EXPECTED
from beyondpixel.experiments.launch.lock import RunLock
from beyondpixel.experiments.merge import MergedConfig
from beyondpixel.experiments.resolve import DEFAULT_CLASSES, DEFAULT_SEED, complete, import_classes
from beyondpixel.experiments.resume import checkpoint_to_resume
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.run.processes import process_rank
from beyondpixel.experiments.spec import parse_overrides
from beyondpixel.experiments.yaml_files import read_value, read_yaml

DEFAULT_FOLDER = "outputs/fit"
DEFAULTS = {
    "seed_everything": DEFAULT_SEED,
    "trainer.max_steps": 300,
    "trainer.default_root_dir": DEFAULT_FOLDER,
    "trainer.log_every_n_steps": 10,
}
LOSS_OPTION = re.compile(r"--model\.(init_args\.)?loss(=|\.|$)")


def fit(arguments: Sequence[str]) -> None:
    """Train in a run folder, `trainer.default_root_dir`: start a run, resume an unfinished or keep a finished one."""
    from beyondpixel.experiments.training import train

    resolved, options = read_command_line("fit", arguments[1:])
    folder = RunFolder(resolved["trainer"]["default_root_dir"] or DEFAULT_FOLDER)
    first = process_rank() == 0
    with RunLock(folder.lock_file) if first else nullcontext():
        if first:
            folder.remove_temporary_files()
        resume = None if options.overwrite else checkpoint_to_resume(folder, resolved)
        if options.ckpt_path is not None and resume is not None:
            print(f"Resuming {resume}; this run started from --ckpt_path, and --overwrite starts from it again")
        elif options.ckpt_path is not None:
            resume = find_checkpoint(options.ckpt_path, _last_config(peek(arguments)[0]))
            if "optimizer_states" not in read_checkpoint(resume):
                raise UserError(
                    f"--ckpt_path: {resume} holds weights alone, as `launch --keep weights` leaves them; expected a "
                    "checkpoint with the optimizer's state: choose another one, or train its run with --keep resume"
                )
            if options.overwrite and resume.resolve().is_relative_to(folder.path.resolve()):
                raise UserError(
                    f"--ckpt_path: {resume} is in {folder.path}, which --overwrite empties; "
                    "choose another folder with --trainer.default_root_dir"
                )
        with full_disk_as_user_error(folder.path):
            train(folder, resolved, resume=resume, overwrite=options.overwrite, test=False)
    print(f"Run folder: {folder.path}")
    if folder.last_checkpoint.exists():  # not with fast_dev_run
        print(f"Test it with: beyondpixel test --ckpt_path {shlex.quote(str(folder.last_checkpoint))}")


def score(arguments: Sequence[str]) -> None:
    """Score a checkpoint on the validation or the test images; the first argument is `validate` or `test`."""
    from beyondpixel.experiments.inference.evaluate_run import evaluate_checkpoint

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
    resolved, options = read_command_line(name, words)
    folder = evaluate_checkpoint(name, checkpoint, resolved, inferer=options.inferer)
    print(f"Scored {checkpoint} on the {STAGES[name]} images" + (f"; see {folder.path}" if folder else ""))


def _last_config(given: argparse.Namespace) -> Path | None:
    """The config file that `last` and `best` refer to."""
    return Path(given.config[-1]) if given.config else None


def quiet_lightning() -> None:
    """Hide messages that a user cannot act on: advertisements, and Lightning's use of deprecated torch features."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_is_relevant)
    for message in (
        ".*LeafSpec.*",
        "The `srun` command is available",
        "Be aware that when using `ckpt_path`",
        "Total length of `list` across ranks is zero",
    ):
        warnings.filterwarnings("ignore", message=message)


def _is_relevant(record: logging.LogRecord) -> bool:
    return not any(text in str(record.msg) for text in ("Tip:", "TPU available", "💡"))


def read_command_line(command: str, words: Sequence[str]) -> tuple[dict[str, Any], Namespace]:
    """Parse the arguments of `beyondpixel fit`, `validate` or `test` without building anything.

    Returns:
        The config with every default, as plain types, and all arguments, among them the command's own options.

    Raises:
        UserError: naming every wrong key or value, or a module that may not be imported.
    """
    quiet_lightning()
    import_classes()
    # without abbreviations, since `peek` has to see every --config
    parser = make_parser(prog=f"beyondpixel {command}", allow_abbrev=False, exit_on_error=False)
    parser.set_defaults(DEFAULTS)
    parser.add_argument("-c", "--config", action="config", help="a YAML file with keys of the config")
    parser.add_argument("--ckpt_path", type=str | None, help="the checkpoint to score, or to start from")
    if command == "fit":
        parser.add_argument("--overwrite", action="store_true", help="replace the run in trainer.default_root_dir")
    else:
        parser.add_argument("--inferer", type=str | None, help=f"how images are predicted: {EXPECTED}")
    if any(word in ("-h", "--help") for word in words):
        parser.parse_args(["--help"])  # without the config, which would be parsed first
    merged, rest = _merge_config_files(words)
    try:
        config = parser.parse_args([f"--config={yaml.safe_dump(merged.values)}", *rest])
    except ArgumentError as error:
        # the same words as for `launch`, with the closest valid one; there may be no error there
        for key, value in parse_overrides(rest)[0].items():
            merged.set(key, value, source="command line")
        text = _shown(complete(merged.values)[1]) or str(error)
        raise UserError(f"{text}\nAll options: beyondpixel {command} --help") from error
    dumped: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_validation=True, skip_unset=False))
    resolved, errors = complete({key: dumped[key] for key in ("model", "data", "trainer", "seed_everything")})
    if errors:
        raise UserError(_shown(errors))
    return resolved, config


def _shown(errors: Sequence[tuple[tuple[str, ...], str]]) -> str:
    return "\n".join(f"{'.'.join(keys)}: {text}" for keys, text in errors)


def peek(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse `--config` files, `--ckpt_path` and the classes of model and data; return all other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--ckpt_path")
    for part in DEFAULT_CLASSES:
        parser.add_argument(f"--{part}", f"--{part}.class_path", dest=part)
    return parser.parse_known_args(words)


def _merge_config_files(words: Sequence[str]) -> tuple[MergedConfig, list[str]]:
    """Merge all config files, without the arguments of classes that are not used; return all other words, too."""
    given, rest = peek(words)
    merged = MergedConfig()
    for part, default in DEFAULT_CLASSES.items():
        merged.set(f"{part}.class_path", default, source="default")
    for config in given.config:
        content = read_yaml(Path(config)) if os.path.isfile(config) else read_value(config)  # noqa: PTH113
        if not isinstance(content, dict):
            raise UserError(f"--config {config}: no such file; expected a YAML file with keys such as model and data")
        merged.add(content, source=config)
    check_imports(merged.values)
    for part in DEFAULT_CLASSES:
        if getattr(given, part) is not None:
            merged.set(f"{part}.class_path", getattr(given, part), source="command line")
    of_loss, rest = _split_loss_options(rest)
    for key, value in parse_overrides(of_loss)[0].items():
        merged.set(key, value, source="command line")
    checkpoint = [] if given.ckpt_path is None else [f"--ckpt_path={given.ckpt_path}"]
    return merged, [*checkpoint, *rest]


def _split_loss_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the loss's options, since LightningCLI does not add arguments to a loss that is given by name."""
    of_loss: list[str] = []
    others: list[str] = []
    following = iter(words)
    for word in following:
        if LOSS_OPTION.match(word):
            of_loss += [word, *itertools.islice(following, 0 if "=" in word else 1)]
        else:
            others.append(word)
    return of_loss, others
