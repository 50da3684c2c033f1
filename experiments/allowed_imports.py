"""The modules that a config may have imported: importing one runs its top level, whatever is then taken from it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from beyondpixel.experiments.errors import UserError

OPTION = "--allow-import"
# processes that are started for a run inherit it
VARIABLE = "BEYONDPIXEL_ALLOW_IMPORT"
# this package and what it depends on, by the names they are imported by
OWN = (
    *("beyondpixel", "torch", "torchvision", "torchmetrics", "pytorch_lightning", "lightning_fabric", "lightning"),
    *("segmentation_models_pytorch", "timm", "albumentations", "wandb", "numpy", "builtins"),
)


def take_allowed(words: Sequence[str]) -> list[str]:
    """Take `--allow-import MODULE` out of a command line, as often as it is given, and note the modules.

    Raises:
        UserError: if no module follows.

    Example:
        >>> take_allowed(["launch", "table"])
        ['launch', 'table']
    """
    rest: list[str] = []
    waiting = list(words)
    while waiting:
        option, equals, value = (word := waiting.pop(0)).partition("=")
        if option != OPTION:
            rest.append(word)
            continue
        value = value if equals or not waiting else waiting.pop(0)
        if not all(part.isidentifier() for name in value.split(",") for part in name.split(".")):
            raise UserError(f"{OPTION} {value}: expected the name of a module, such as my_project or my_project.models")
        os.environ[VARIABLE] = ",".join(filter(None, [os.environ.get(VARIABLE), value]))
    return rest


def forbidden_imports(config: Any) -> list[tuple[tuple[str | int, ...], str]]:
    """Class paths of a config whose modules may not be imported: the path of keys, and what to do about it.

    A module that is imported already has run its top level, so it is allowed.

    Example:
        >>> forbidden_imports({"model": {"class_path": "torch.nn.Linear"}})
        []
        >>> ((keys, text),) = forbidden_imports({"model": {"class_path": "elsewhere.Network"}})
        >>> keys, text.partition(";")[0]
        (('model', 'class_path'), "elsewhere.Network: the module 'elsewhere' is not imported unasked")
    """
    allowed = (*OWN, *filter(None, os.environ.get(VARIABLE, "").split(",")))
    faults = []
    for keys, class_path in _class_paths(config, ()):
        module = class_path.rpartition(".")[0]
        if module and module not in sys.modules and not any(f"{module}.".startswith(f"{name}.") for name in allowed):
            top = module.partition(".")[0]
            text = f"{class_path}: the module {top!r} is not imported unasked; if you trust it, add {OPTION} {top}"
            faults.append((keys, text))
    return faults


def check_imports(config: Any) -> None:
    """Raise for the first class path of a config whose module may not be imported.

    Raises:
        UserError: naming the key.
    """
    for keys, text in forbidden_imports(config):
        raise UserError(f"{'.'.join(map(str, keys))}: {text}")


def _class_paths(value: Any, keys: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "class_path" and isinstance(inner, str):
                yield (*keys, key), inner
            yield from _class_paths(inner, (*keys, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _class_paths(inner, (*keys, index))
