"""Build module, data module and Trainer arguments from a resolved config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser

from beyondpixel.experiments.allowed_imports import check_imports
from beyondpixel.experiments.errors import UserError

# arguments linked to another key: properties of the data set, and the seed
LINKED = {"model": ("num_classes", "ignore_index", "class_names"), "data": ("seed",)}


class Built(NamedTuple):
    """Objects built from a config.

    Attributes:
        module: the LightningModule.
        datamodule: the data it is trained on.
        trainer: the arguments of its Trainer, with callbacks, loggers and plugins as objects.
    """

    module: LightningModule
    datamodule: LightningDataModule
    trainer: dict[str, Any]


def build_all(config: Mapping[str, Any]) -> Built:
    """Build module, data module and Trainer arguments of a resolved config.

    Args:
        config: `model`, `data`, `trainer` and `seed_everything`, from `resolve` or a run's config.yaml.

    Raises:
        UserError: if a constructor fails, such as for an encoder that cannot be dilated or for missing data.

    Example:
        >>> from beyondpixel.experiments.resolve import complete
        >>> values, _ = complete({"model": {"init_args": {"encoder": "resnet18", "encoder_weights": None}}})
        >>> built = build_all(values)
        >>> built.module.num_classes == built.datamodule.num_classes
        True
    """
    objects = _instantiate(_parser(), config, ("model", "data", "trainer", "seed_everything"))
    return Built(objects["model"], objects["data"], dict(objects["trainer"]))


def build_data(config: Mapping[str, Any]) -> LightningDataModule:
    """Build only the data module of a resolved config; arguments and errors as for `build_all`."""
    parser = LightningArgumentParser(exit_on_error=False)
    _add_data(parser)
    module: LightningDataModule = _instantiate(parser, config, ("data", "seed_everything"))["data"]
    return module


def _instantiate(parser: LightningArgumentParser, config: Mapping[str, Any], parts: Sequence[str]) -> Namespace:
    check_imports(config)
    try:
        parsed = parser.parse_object({part: config[part] for part in parts})
        objects: Namespace = parser.instantiate(parsed, instantiators=[(_construct, object, True)])
    except (ArgumentError, ValueError, TypeError) as error:
        raise UserError(str(_constructors_error(error) or error)) from error
    return objects


def _construct(of: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Create an object, with the errors of its constructor as UserErrors."""
    try:
        return of(*args, **kwargs)
    except (ValueError, TypeError, OSError) as error:  # FileNotFoundError and ConnectionError are OSErrors
        raise UserError(str(error)) from error


def _constructors_error(error: BaseException | None) -> UserError | None:
    """The error from `_construct` among the causes of a parser's error, if there is one."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


@cache
def _parser() -> LightningArgumentParser:
    return make_parser(exit_on_error=False)


def make_parser(**settings: Any) -> LightningArgumentParser:
    """Create a parser of configs."""
    parser = LightningArgumentParser(**settings)
    parser.add_lightning_class_args(Trainer, "trainer")
    put_integers_first(parser)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    _add_data(parser)
    for name in LINKED["model"]:  # properties of the data set
        parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
    return parser


def _add_data(parser: LightningArgumentParser) -> None:
    parser.add_argument("--seed_everything", type=int)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    parser.link_arguments("seed_everything", "data.init_args.seed")


def put_integers_first(parser: ArgumentParser) -> None:
    """Make a parser try int before float, as in Trainer's annotations: 1 is one batch, and 1.0 is all of them.

    The order is lost if a library used the types in the other order shortly before Trainer was imported: Python caches
    recent types, and uses one `Optional[Union[int, float]]` for both orders.

    Example:
        >>> def train(limit: float | int | None = None) -> None: ...
        >>> parser = ArgumentParser()
        >>> _ = parser.add_function_arguments(train)
        >>> put_integers_first(parser)
        >>> parser.parse_args(["--limit=1"]).limit, parser.parse_args(["--limit=0.5"]).limit
        (1, 0.5)
    """
    for action in parser._actions:
        argument: Any = action
        types = get_args(getattr(argument, "_typehint", None))
        if get_origin(getattr(argument, "_typehint", None)) in (Union, UnionType) and {int, float} <= set(types):
            argument._typehint = Union[tuple(sorted(types, key=lambda one: one is not int))]  # noqa: UP007
