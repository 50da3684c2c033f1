"""Reading of YAML files and values, by YAML 1.2 and without repeated keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from beyondpixel.experiments.errors import UserError

# the compiled loader is ten times faster, where it is available
SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_UNCHECKED, MAX_DEPTH = 1000, 100


class _Loader(SafeLoader):  # type: ignore[misc]
    """Loader of YAML 1.2 scalars that refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                mark = node.value[index][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} is given twice; keep one", mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


# PyYAML's own are of YAML 1.1: 1e-4 is text, 4:00:00 a number in base 60, `on` is true, and 2024-01-31 is a date
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_yaml(file: Path) -> dict[str, Any]:
    """Read the mapping in a file; an empty file is an empty mapping.

    Raises:
        UserError: naming the file, if it cannot be read, is not valid YAML, holds no mapping or a key twice.
    """
    try:
        content = _load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise UserError(f"{shown(file)}: not valid YAML{line}: {error.problem}") from error
    # UnicodeDecodeError is a ValueError, and PyYAML raises ValueError for invalid dates
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{shown(file)}: cannot be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{shown(file)}: expected a mapping, got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def read_value(text: str) -> Any:
    """Parse a single value, as in a file.

    Raises:
        UserError: if the text is not valid YAML.

    Example:
        >>> read_value("1e-4"), read_value("[1, 2]"), read_value("rmi")
        (0.0001, [1, 2], 'rmi')
    """
    try:
        return _load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{text}: not a valid YAML value: {str(error).splitlines()[0]}") from error


def in_one_line(value: Any) -> str:
    """A value as YAML in one line.

    Example:
        >>> in_one_line({"name": "rmi", "region_size": 5}), in_one_line([321, 321]), in_one_line("rmi")
        ('{name: rmi, region_size: 5}', '[321, 321]', 'rmi')
    """
    dumped: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return dumped.removesuffix("...\n").strip()


def check_depth(text: str) -> None:
    """Refuse YAML that is nested so deeply that the compiled parser, which recurses, would overflow the stack.

    Raises:
        ValueError: if it is nested too deeply.

    Example:
        >>> check_depth("[" * 5000)
        Traceback (most recent call last):
        ValueError: it is nested more than 100 levels deep
    """
    most_dashes = max((len(line) - len(line.lstrip(" -?:\t")) for line in text.splitlines()), default=0)
    if text.count("[") + text.count("{") + most_dashes < MAX_UNCHECKED:
        return
    depth = 0
    for event in yaml.parse(text, Loader=SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def shown(file: Path) -> str:
    """A file's path for messages: relative to the working directory if it is in it."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def _load(text: str) -> Any:
    check_depth(text)
    return yaml.load(text, Loader=_Loader)  # noqa: S506 (a safe loader)
