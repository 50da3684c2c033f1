"""Resolve a spec: fill in every default and check every value.

Defaults come only from the signatures of the classes that the values belong to.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.strategies import StrategyRegistry

import beyondpixel.datamodules
import beyondpixel.lightning_modules
from beyondpixel.experiments.allowed_imports import forbidden_imports
from beyondpixel.experiments.build import LINKED, put_integers_first
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.merge import Keys, did_you_mean, suggestion
from beyondpixel.experiments.spec import RunSpec, SpecError
from beyondpixel.experiments.yaml_files import shown
from beyondpixel.losses import LOSSES, loss_class

Errors = list[tuple[Keys, str]]  # paths of keys with a text each
DEFAULT_SEED = 1
MAX_SEED = 2**32 - 1  # NumPy's
DEFAULT_CLASSES = {
    "model": "beyondpixel.lightning_modules.DeepLabModule",
    "data": "beyondpixel.datamodules.ShapesDataModule",
}
KINDS: dict[str, Any] = {"model": LightningModule, "data": LightningDataModule}
PACKAGES = {"model": beyondpixel.lightning_modules, "data": beyondpixel.datamodules}
LOSS_LINKED = ("num_classes", "ignore_index")
# modules in which a class is looked up by its short name
MODULES = {"optimizer": "torch.optim", "lr_scheduler": "torch.optim.lr_scheduler"}


def import_classes() -> None:
    """Import every model and data class: the argument parser finds only imported classes by their short names."""
    for package in PACKAGES.values():
        for name in package.__all__:
            getattr(package, name)


def resolve(spec: RunSpec) -> dict[str, Any]:
    """Fill in the defaults of a spec's classes and check every value, without building anything.

    Returns:
        `model`, `data` (each `class_path` and `init_args`), `trainer` and `seed_everything`, as plain types.

    Raises:
        SpecError: naming every unknown key, class or loss and every value of the wrong type, and where it was given.

    Example:
        >>> from beyondpixel.experiments.spec import load_specs
        >>> config = resolve(load_specs(["demo/rmi"])[0])
        >>> config["data"]["init_args"]["batch_size"], config["trainer"]["max_steps"]
        (8, 200)
    """
    values, errors = complete(spec.config)
    if errors:
        raise SpecError([f"{_location(spec, keys)}: {'.'.join(keys)}: {text}" for keys, text in errors])
    return values


def _location(spec: RunSpec, keys: Keys) -> str:
    source = spec.merged.source_of(keys, default="row")
    return {"row": shown(spec.file), "command line": source}.get(source, f"{source}.yaml")


def complete(config: Mapping[str, Any]) -> tuple[dict[str, Any], Errors]:
    """Fill in every default of a config and list its errors: paths of keys with a text each.

    Example:
        >>> values, errors = complete({"model": {"init_args": {"lr": "fast", "encodr": "resnet18"}}})
        >>> for keys, text in errors:
        ...     print(".".join(keys), text)
        model.init_args.lr expected float, got 'fast'
        model.init_args.encodr unknown key; did you mean encoder or decoder?
    """
    keys = (*KINDS, "trainer", "seed_everything")
    unknown = [key for key in config if key not in keys]
    errors: Errors = [((key,), f"unknown key; {suggestion(key, keys)}") for key in unknown]
    forbidden = forbidden_imports(config)
    if forbidden:
        return dict(config), [*errors, *forbidden]
    values: dict[str, Any] = {part: _complete_class(part, config.get(part) or {}, errors) for part in KINDS}
    values["trainer"] = _complete_arguments(Trainer, config.get("trainer") or {}, ("trainer",), errors)
    values["seed_everything"] = config.get("seed_everything", DEFAULT_SEED)
    return values, errors or _invalid_values(values)


def _invalid_values(values: Mapping[str, Any]) -> Errors:
    """List the errors of values that have the right type, but with which a training fails or has no steps."""
    trainer, seed = values["trainer"], values["seed_everything"]
    steps, warmup = trainer["max_steps"], values["model"]["init_args"].get("warmup_iters")
    errors: Errors = []
    if steps > 0 and warmup is not None and warmup >= steps:
        text = f"expected fewer iterations than trainer.max_steps, {steps}, got {warmup}; lower it, or train longer"
        errors.append((("model", "init_args", "warmup_iters"), text))
    if isinstance(seed, bool) or (isinstance(seed, int) and not 0 <= seed <= MAX_SEED):
        errors.append((("seed_everything",), f"expected an integer from 0 to {MAX_SEED}, got {seed!r}"))
    return [*errors, *_invalid_trainer_values(trainer)]


def _invalid_trainer_values(trainer: Mapping[str, Any]) -> Errors:
    errors: Errors = []
    for key in ("limit_train_batches", "accumulate_grad_batches", "check_val_every_n_epoch"):
        value = trainer.get(key)
        if isinstance(value, int | float) and value <= 0:
            errors.append((("trainer", key), f"expected more than 0, got {value}; leave the key out for its default"))
    for key, wrong in (("enable_checkpointing", False), ("barebones", True)):
        if trainer.get(key) is wrong:
            text = (
                f"expected {not wrong}, got {wrong}: a run writes checkpoints and metrics to its folder; leave it out"
            )
            errors.append((("trainer", key), text))
    for key, names in (
        ("strategy", StrategyRegistry.available_strategies()),
        ("accelerator", ["gpu", *AcceleratorRegistry.available_accelerators()]),
    ):
        value, known = trainer.get(key), ["auto", *names]
        if isinstance(value, str) and value not in known:
            errors.append((("trainer", key), f"expected a name, got {value!r}; {suggestion(value, known)}"))
    return errors


def import_class(class_path: str, part: str) -> type:
    """Import a class by its full path, or by a name that this package exports.

    Raises:
        UserError: if there is no such class, or it has the wrong base class for this part of a config.
    """
    package, kind = PACKAGES[part], KINDS[part]
    module_name, _, name = str(class_path).rpartition(".")
    names = [name for name in package.__all__ if isinstance(getattr(package, name), type)]
    names = [name for name in names if issubclass(getattr(package, name), kind) and not name.startswith("Segmentation")]
    try:
        found = getattr(importlib.import_module(module_name) if module_name else package, name)
    except (ImportError, AttributeError) as error:
        hint = suggestion(name, names)
        raise UserError(f"no class {class_path!r} ({error}); {hint}, or the full path of your own class") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(f"{class_path} is not a {kind.__name__}; {suggestion(name, names)}")
    return found


def _complete_class(part: str, given: Any, errors: Errors) -> dict[str, Any]:
    if not isinstance(given, Mapping):  # a class with its defaults, as `model: MCIBIModule`
        given = {"class_path": given}
    class_path = given.get("class_path", DEFAULT_CLASSES[part])
    try:
        found = import_class(class_path, part)
    except UserError as error:
        errors.append(((part, "class_path"), str(error)))
        return dict(given)
    for key in given:
        if key not in ("class_path", "init_args"):
            below = key in _defaults(found, LINKED[part])
            hint = f"it belongs below {part}.init_args" if below else suggestion(key, ("class_path", "init_args"))
            errors.append(((part, str(key)), f"unknown key; {hint}"))
    values = _complete_arguments(found, given.get("init_args") or {}, (part, "init_args"), errors, LINKED[part])
    if "loss" in values:
        values["loss"] = _complete_loss(values["loss"], (part, "init_args", "loss"), errors)
    full_path = class_path if "." in str(class_path) else f"{PACKAGES[part].__name__}.{class_path}"
    return {"class_path": full_path, "init_args": values}


def _complete_loss(loss: Any, above: Keys, errors: Errors) -> Any:
    """Complete a loss, given by name and arguments, or a list of losses; anything else is left to the model."""
    if isinstance(loss, list):
        return [_complete_loss(entry, (*above, str(index)), errors) for index, entry in enumerate(loss)]
    settings = {"name": loss} if isinstance(loss, str) else loss
    if not isinstance(settings, Mapping):
        return loss
    arguments = dict(settings)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in LOSSES:
        beside = f" beside {', '.join(map(str, arguments))}" if arguments else ""
        got = f"no name{beside}" if name is None else repr(name)
        keys = above if isinstance(loss, str) or name is None else (*above, "name")
        errors.append((keys, f"expected the name of a loss, got {got}; {suggestion(str(name), LOSSES)}"))
        return loss
    weight = {"weight": arguments.pop("weight")} if "weight" in arguments else {}
    return {"name": name, **_complete_arguments(loss_class(name), arguments, above, errors, LOSS_LINKED), **weight}


def _complete_arguments(
    function: Any, given: Any, above: Keys, errors: Errors, linked: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The arguments of a class: its defaults, and the given values converted to their annotated types."""
    if not isinstance(given, Mapping):
        errors.append((above, f"expected keys and values, got {given!r}"))
        return {}
    values = dict(_defaults(function, linked))
    for key, value in given.items():
        keys = (*above, str(key))
        if key in linked:
            source = "--seed_everything" if key == "seed" else "the data module"
            errors.append((keys, f"set by {source}; remove it"))
        elif key not in values:
            errors.append((keys, f"unknown key; {_hint(key, values, above)}"))
        elif value is None and values[key] is not None and not _accepts_null(_annotation(function, linked, key)):
            # jsonargparse treats null as not given
            text = f"expected {_annotation(function, linked, key)}, got null; omit the key to use its default"
            errors.append((keys, text))
        else:
            try:
                values[key] = json.loads(_converted(function, linked, key, json.dumps(value, default=str)))
            except (ArgumentError, ValueError, TypeError):
                error = _error_within(value, keys) or (keys, _expected(_annotation(function, linked, key), value))
                errors.append(error)
    return values


def _accepts_null(annotation: str) -> bool:
    return re.search(r"\b(None|Any)\b", annotation) is not None


def _expected(annotation: str, value: Any) -> str:
    closest = did_you_mean(value, re.findall(r"'([^']*)'", annotation))  # of a Literal's words
    return "; ".join(filter(None, [f"expected {annotation}, got {value!r}", closest]))


def _error_within(value: Any, keys: Keys) -> tuple[Keys, str] | None:
    """Find a wrong name in a value that is a class with arguments, such as an optimizer."""
    default_module = MODULES.get(keys[-1], "")
    if not isinstance(value, Mapping):
        return None
    if "class_path" in value:
        return _error_in_class(str(value["class_path"]), value.get("init_args"), default_module, keys)
    if default_module:
        remedy = f"add class_path: {default_module}.NAME"
        return keys, f"expected class_path beside these arguments, got {value!r}; {remedy}"
    return None


def _error_in_class(class_path: str, arguments: Any, default_module: str, keys: Keys) -> tuple[Keys, str] | None:
    module_name, _, name = class_path.rpartition(".")
    if not (module_name or default_module):
        return None
    names: list[str] = []
    try:
        module = importlib.import_module(module_name or default_module)
        names = [known for known, one in vars(module).items() if isinstance(one, type)]
        known_arguments = inspect.signature(getattr(module, name)).parameters
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        hint = suggestion(name, names) if names else "expected a full path such as torch.optim.AdamW"
        return (*keys, "class_path"), f"no class {class_path!r} ({error}); {hint}"
    for key in arguments if isinstance(arguments, Mapping) else ():
        if key not in known_arguments:
            return (*keys, "init_args", str(key)), f"unknown key; {suggestion(key, known_arguments)}"
    return None


def _hint(key: object, known: Mapping[str, Any], above: Keys) -> str:
    losses = [name for name in LOSSES if key in _defaults(loss_class(name), LOSS_LINKED)]
    if above == ("model", "init_args") and losses:
        return f"{key} belongs to a loss: write it below model.init_args.loss, beside the loss's name"
    return suggestion(key, known)


@cache
def _parser(function: Any, skip: tuple[str, ...]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(function, skip=set(skip), fail_untyped=False, sub_configs=False)
    put_integers_first(parser)
    for action in parser._actions:  # each value is parsed on its own: a missing one is no error of the others
        action.required = False
    return parser


@cache
def _defaults(function: Any, skip: tuple[str, ...]) -> dict[str, Any]:
    parser = _parser(function, skip)
    dumped: dict[str, Any] = yaml.safe_load(parser.dump(parser.get_defaults(), skip_validation=True, skip_unset=False))
    return dumped


@cache
def _converted(function: Any, skip: tuple[str, ...], key: str, value: str) -> str:
    """Convert a value to the annotated type of its argument; as JSON, so that equal values are converted once."""
    parser = _parser(function, skip)
    parsed = parser.parse_object({key: json.loads(value)})  # with the defaults of a nested class, such as an optimizer
    return json.dumps(yaml.safe_load(parser.dump(parsed, skip_validation=True, skip_unset=False))[key])


def _annotation(function: Any, skip: tuple[str, ...], key: str) -> str:
    """The annotated type of an argument, as text."""
    action: Any = next(action for action in _parser(function, skip)._actions if action.dest == key)
    hint = getattr(action, "_typehint", None) or action.type
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    text = re.sub(r"\b(?:typing|collections\.abc|pathlib)\.", "", text).replace("NoneType", "None")
    return re.sub(r"^Optional\[(.*)\]$", r"\1 | None", text)
