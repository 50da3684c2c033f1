"""Allowlist of the modules that a config may import, since any import runs the module's top-level code."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from beyondpixel.experiments.errors import UserError

OPTION = "--allow-import"
# an environment variable, so that the processes of a run inherit it
VARIABLE = "BEYONDPIXEL_ALLOW_IMPORT"
# import names of this package and its dependencies
ALWAYS_ALLOWED = (
    *("beyondpixel", "torch", "torchvision", "torchmetrics", "pytorch_lightning", "lightning_fabric", "lightning"),
    *("segmentation_models_pytorch", "timm", "albumentations", "wandb", "numpy", "builtins"),
)


def take_allowed(words: Sequence[str]) -> list[str]:
    """Remove every `--allow-import MODULE` from a command line and add the modules to `VARIABLE`.

    Raises:
        UserError: if no module name follows.

    Example:
        >>> take_allowed(["launch", "table"])
        ['launch', 'table']
    """
    rest: list[str] = []
    remaining = list(words)
    while remaining:
        option, equals, value = (word := remaining.pop(0)).partition("=")
        if option != OPTION:
            rest.append(word)
            continue
        value = value if equals or not remaining else remaining.pop(0)
        if not all(part.isidentifier() for name in value.split(",") for part in name.split(".")):
            raise UserError(f"{OPTION} {value}: expected the name of a module, such as my_project or my_project.models")
        os.environ[VARIABLE] = ",".join(filter(None, [os.environ.get(VARIABLE), value]))
    return rest


def forbidden_imports(config: Any, above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str]]:
    """Find the class paths of a config whose modules may not be imported, each as keys and an error message.

    Modules that are already imported are allowed, since their top-level code has run.

    Example:
        >>> forbidden_imports({"model": {"class_path": "torch.nn.Linear"}})
        []
        >>> ((keys, text),) = forbidden_imports({"model": {"class_path": "elsewhere.Network"}})
        >>> keys, text.partition(";")[0]
        (('model', 'class_path'), "elsewhere.Network: the module 'elsewhere' may not be imported")
    """
    if isinstance(config, list | tuple):
        config = dict(enumerate(config))
    faults = []
    for key, value in config.items() if isinstance(config, Mapping) else ():
        keys = (*above, str(key))
        module = value.rpartition(".")[0] if key == "class_path" and isinstance(value, str) else ""
        if module and not _is_allowed(module):
            top = module.partition(".")[0]
            text = f"{value}: the module {top!r} may not be imported; if you trust it, add {OPTION} {top}"
            faults.append((keys, text))
        faults += forbidden_imports(value, keys)
    return faults


def check_imports(config: Any) -> None:
    """Raise for the first class path of a config whose module may not be imported.

    Raises:
        UserError: naming the key.
    """
    for keys, text in forbidden_imports(config):
        raise UserError(f"{'.'.join(keys)}: {text}")


def _is_allowed(module: str) -> bool:
    allowed = (*ALWAYS_ALLOWED, *filter(None, os.environ.get(VARIABLE, "").split(",")))
    return module in sys.modules or any(f"{module}.".startswith(f"{name}.") for name in allowed)
