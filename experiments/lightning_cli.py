"""`beyondpixel fit | validate | test | predict`: LightningCLI's keys, read into a config that is then run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from beyondpixel.experiments.allowed_imports import check_imports
from beyondpixel.experiments.build import link_arguments
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.inferers import EXPECTED
from beyondpixel.experiments.number_types import put_integers_first
from beyondpixel.experiments.resolve import DEFAULT_CLASSES, DEFAULT_SEED, complete, import_classes
from beyondpixel.experiments.yaml_files import is_usable, read_yaml

EVALUATIONS = ("validate", "test", "predict")
DEFAULT_FOLDER = "outputs/fit"


def quiet_lightning() -> None:
    """Leave out what a user can do nothing about: advertisements, and Lightning's use of deprecated torch parts."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_is_news)
    for message in (
        ".*LeafSpec.*",
        "The `srun` command is available",
        "LightningCLI's args parameter",
        "Be aware that when using `ckpt_path`",
        "Total length of `list` across ranks is zero",
    ):
        warnings.filterwarnings("ignore", message=message)


def _is_news(line: logging.LogRecord) -> bool:
    return not any(text in str(line.msg) for text in ("Tip:", "TPU available", "💡"))


class SegmentationCLI(LightningCLI):
    """Reads the command line of `fit`, `validate`, `test` and `predict`; builds and runs nothing.

    Args:
        arguments: the command line after `beyondpixel`.

    Attributes:
        subcommand: `fit`, `validate`, `test` or `predict`.
        options: what was given beside the config: `ckpt_path`, `overwrite`, `inferer`.
        resolved: the config with every default, as plain types.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        quiet_lightning()
        import_classes()
        for file in _config_files(_joined_config_options(arguments)):
            check_imports(read_yaml(file), f"{file}: ")
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=_with_default_classes(list(arguments)),
            seed_everything_default=DEFAULT_SEED,
            save_config_callback=None,  # the run folder keeps it, where a resumed run finds it
            auto_configure_optimizers=False,
            trainer_defaults={"max_steps": 300, "default_root_dir": DEFAULT_FOLDER, "log_every_n_steps": 10},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the arguments that another key gives, and read an integer as one."""
        link_arguments(parser)
        put_integers_first(parser)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in EVALUATIONS:
            parser.add_argument(
                "--inferer",
                type=str | None,
                help=f"how images are predicted, beyond once and whole: {EXPECTED}",
            )
        else:
            parser.add_argument(
                "--overwrite", action="store_true", help="replace a finished run in trainer.default_root_dir"
            )
        return parser

    def _parse_ckpt_path(self) -> None:
        """Lightning would put the checkpoint's hyper-parameters over the config; here the run's config.yaml rules."""

    def _set_seed(self) -> None:
        """Reading a config draws no random numbers."""

    def instantiate_classes(self) -> None:
        """Fill in the defaults that the parser does not know, those of the losses."""
        parser, config = self._parser(self.subcommand), self.config[self.subcommand]
        dumped: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_validation=True, skip_none=False))
        parts = {key: dumped.pop(key) for key in ("model", "data", "trainer", "seed_everything")}
        self.resolved, errors = complete(parts)
        if errors:
            raise UserError("\n".join(f"{'.'.join(keys)}: {text}" for keys, text in errors))
        self.options = {key: config.get(key) for key in ("ckpt_path", "overwrite", "inferer")}

    def _run_subcommand(self, subcommand: str) -> None:
        """Whoever made this object runs it."""


def _with_default_classes(arguments: list[str]) -> list[str]:
    """Name a model and a data class where nobody has, and keep a config file's arguments of another class out.

    A default class of the parser would hand its arguments on to whichever class is named instead; so it is only added
    to the arguments of a command line that names none.
    """
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        return arguments
    arguments = _joined_config_options(arguments)
    named = {part: _named_class(arguments, part) for part in DEFAULT_CLASSES}
    of_files = [_class_paths(file) for file in _config_files(arguments)]
    defaults = [
        f"--{part}={default}"
        for part, default in DEFAULT_CLASSES.items()
        if named[part] is None and not any(part in classes for classes in of_files)
    ]
    return [arguments[0], *defaults, *(_without_other_classes(argument, named) for argument in arguments[1:])]


def _without_other_classes(argument: str, named: Mapping[str, str | None]) -> str:
    """`--config=FILE` as its content without the parts for which another class is named; others as they are."""
    for file in _config_files([argument]):
        names = {part: class_path.rpartition(".")[2] for part, class_path in _class_paths(file).items()}
        other = [part for part, name in names.items() if (named[part] or name).rpartition(".")[2] != name]
        if other:
            content = {key: value for key, value in read_yaml(file).items() if key not in other}
            return f"--config={yaml.safe_dump(content)}"
    return argument


def _joined_config_options(arguments: Sequence[str]) -> list[str]:
    """`--config FILE` and `-c FILE` as one argument each."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--config", "-c"):
            joined[-1] = f"--config={argument}"
        else:
            joined.append(argument)
    return joined


def _named_class(arguments: Sequence[str], part: str) -> str | None:
    """The class that a command line names last for `model` or `data`."""
    named = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = argument.partition("=")
        if option in (f"--{part}", f"--{part}.class_path"):
            named = value if equals else following
    return named


def _config_files(arguments: Sequence[str]) -> list[Path]:
    """The files of `--config=FILE`; the option may also hold YAML."""
    given = (Path(argument.removeprefix("--config=")) for argument in arguments if argument.startswith("--config="))
    return [file for file in given if is_usable(file) and file.is_file()]


def _class_paths(file: Path) -> dict[str, str]:
    content = read_yaml(file)
    parts = {part: content.get(part) for part in DEFAULT_CLASSES}
    return {
        part: str(value["class_path"])
        for part, value in parts.items()
        if isinstance(value, dict) and "class_path" in value
    }
