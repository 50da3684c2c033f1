"""Which keys of a config are wrong, one by one, told where they were given."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import beyondpixel.datamodules
import beyondpixel.lightning_modules
from beyondpixel.experiments.layers import Keys, close_to, merge, nested
from beyondpixel.lightning_modules.networks.encoders import resolve_encoder_name
from beyondpixel.losses import LOSSES, build_loss

Resolve = Callable[[dict[str, Any]], dict[str, Any]]
PARTS = ("model", "data")
MODULES = {"model": beyondpixel.lightning_modules, "data": beyondpixel.datamodules}
# the command line hands these over from the data to the model
LINKED = ("num_classes", "ignore_index", "class_names")
MAPPINGS: tuple[Keys, ...] = (("trainer",), ("model",), ("data",), ("model", "init_args"), ("data", "init_args"))
LOSS_ARGUMENTS = {name for loss in LOSSES.values() for name in inspect.signature(loss).parameters}


def mistakes_in_config(
    config: Mapping[str, Any], resolve: Resolve, errors: tuple[type[Exception], ...]
) -> list[tuple[Keys, str]]:
    """Every key that is wrong, and what is wrong with it.

    The parser stops at its first complaint and wraps it into a report on all that it tried, so each key is tried by
    itself here, beside nothing but the classes of model and data.

    Args:
        config: LightningCLI's keys.
        resolve: fills in defaults, or raises.
        errors: what `resolve` raises for a mistake.

    Returns:
        Keys and text; empty if no key is wrong by itself.
    """
    found: list[tuple[Keys, str]] = []
    skeleton: dict[str, Any] = {}
    for part in PARTS:
        if isinstance(config.get(part), Mapping) and "class_path" in config[part]:
            classes = {**skeleton, part: {"class_path": config[part]["class_path"]}}
            try:
                resolve(classes)
                skeleton = classes
            except errors as error:
                found.append(((part, "class_path"), _wrong_class(part, config[part]["class_path"], error)))
    defaults = resolve(skeleton)
    wrong_parts = {key for key, value in config.items() if not _passes({**skeleton, key: value}, resolve, errors)}
    for keys, value in _entries(config):
        if keys[0] in PARTS and len(keys) > 2 and keys[0] not in skeleton:
            continue  # without its class, nothing can be said about its arguments
        known = _known(defaults, keys[:-1])
        if keys[-1] not in known:
            found.append((keys, "unknown key; " + _hint(defaults, keys, known)))
        elif keys in MAPPINGS:
            found.append((keys, f"expected keys and values, got {value!r}"))
        elif keys[0] in wrong_parts:
            try:
                resolve(merge(skeleton, nested(keys, value)))
            except errors as error:
                found.append((keys, _expected(keys[-1], value, error)))
    return found


def _passes(config: dict[str, Any], resolve: Resolve, errors: tuple[type[Exception], ...]) -> bool:
    try:
        resolve(config)
    except errors:
        return False
    return True


def mistakes_in_model(model: Any) -> list[tuple[Keys, str]]:
    """What the parser does not know: what the data says, a mistyped encoder, all that is wrong with the loss."""
    arguments = model.get("init_args") if isinstance(model, Mapping) else None
    if not isinstance(arguments, Mapping):
        return []
    found: list[tuple[Keys, str]] = [
        (("model", "init_args", key), "the data module says this; take it out") for key in LINKED if key in arguments
    ]
    found += _mistakes_in_loss(arguments.get("loss"))
    if isinstance(arguments.get("encoder"), str):
        try:
            resolve_encoder_name(arguments["encoder"])
        except ValueError as error:
            found.append((("model", "init_args", "encoder"), str(error)))
    return found


def _mistakes_in_loss(loss: Any) -> list[tuple[Keys, str]]:
    if not isinstance(loss, str | Mapping):  # a module, or for the parser to tell
        return []
    settings = {"name": loss} if isinstance(loss, str) else dict(loss)
    above: Keys = ("model", "init_args", "loss")
    if settings.get("name") not in LOSSES:
        where = (*above, "name") if isinstance(loss, Mapping) and "name" in loss else above
        known = ", ".join(LOSSES)
        hint = close_to(settings.get("name"), LOSSES, otherwise="")
        got = repr(settings["name"]) if "name" in settings else "no name"
        return [(where, f"expected one of {known}, got {got}" + (f"; {hint}" if hint else ""))]
    found: list[tuple[Keys, str]] = []
    for key, value in settings.items():
        message = _refusal({"name": settings["name"], key: value})
        if message is not None:
            found.append(((*above, str(key)), message))
    together = None if found else _refusal(settings)
    return found if together is None else [(above, together)]


def _refusal(settings: dict[str, Any]) -> str | None:
    try:
        build_loss(**{"num_classes": 2, **settings})
    except TypeError as error:
        return f"not understood ({error})"
    except ValueError as error:
        unknown = re.match(r"loss .*: unknown argument (\w+); expected (.*)", str(error))
        if unknown:
            valid = unknown.group(2).split(", ")
            return "unknown key; " + close_to(unknown.group(1), valid, otherwise=f"valid keys are {', '.join(valid)}")
        return re.sub(r"^\w+: ", "", str(error))
    return None


def _entries(config: Mapping[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """The keys that a user may mistype: those of trainer and init_args, and all above them."""
    for key, value in config.items():
        keys = (*above, str(key))
        if keys in MAPPINGS and isinstance(value, Mapping):
            yield from _entries(value, keys)
        elif keys[-1] != "class_path":
            yield keys, value


def _known(defaults: Mapping[str, Any], above: Keys) -> list[str]:
    here: Any = defaults
    for key in above:
        here = here.get(key) or {}
    return [*here, *(["class_path", "init_args"] if above in (("model",), ("data",)) else [])]


def _hint(defaults: Mapping[str, Any], keys: Keys, known: list[str]) -> str:
    part, key = keys[0], keys[-1]
    if keys[1:-1] == () and part in PARTS and key in _known(defaults, (part, "init_args")):
        return f"it belongs below {part}.init_args"
    if part == "model" and key in LOSS_ARGUMENTS:
        return f"{key} belongs to a loss: write it below model.init_args.loss, beside the loss's name"
    return close_to(key, known, otherwise=f"valid keys are {', '.join(known)}")


def _wrong_class(part: str, given: Any, error: Exception) -> str:
    base = "SegmentationModule" if part == "model" else "SegmentationDataModule"
    module = MODULES[part]
    names = [name for name in module.__all__ if name.endswith(base.removeprefix("Segmentation")) and name != base]
    known = [f"{module.__name__}.{name}" for name in names]
    short = str(given).rpartition(".")[2]
    hint = close_to(short, names, otherwise=f"there are {', '.join(known)}, and any class of your own by its full name")
    return f"no class {given!r}; {hint}"


def _expected(key: str, value: Any, error: Exception) -> str:
    """What the parser expected of a key, out of its report."""
    lines = str(error).splitlines()
    starts = [index for index, line in enumerate(lines) if re.search(rf'Parser key "(.*\.)?{re.escape(key)}":', line)]
    below = lines[starts[-1] + 1 :] if starts else lines
    depth = len(lines[starts[-1]]) - len(lines[starts[-1]].lstrip()) if starts else -1
    own = []
    for line in below:
        if len(line) - len(line.lstrip()) <= depth and line.strip():
            break
        own.append(line.strip(" -"))
    kinds = [match.group(1) for line in own if (match := re.match(r"Expected an? (.+?)(?:\. Got value.*)?$", line))]
    if not kinds:
        return f"{' '.join(own).strip()}"
    return f"expected {' or '.join(dict.fromkeys(map(_readable, kinds)))}, got {value!r}"


def _readable(kind: str) -> str:
    names = {"NoneType": "null", "str": "text", "dict": "keys and values", "collections.abc.Sequence": "a list"}
    names |= {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "list": "a list",
        "tuple": "a list",
    }
    choice = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    if choice:
        return choice.group(1).replace(", ", " or ")
    name = re.sub(r"^<class '(.*)'>$", r"\1", kind)
    return names.get(name, name)
