"""YAML files that remember their lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.layers import Keys, Layer, close_to, shown


class SpecError(UserError):
    """Everything that is wrong with a spec.

    Attributes:
        mistakes: one text each, `file:line: what is wrong`.
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(dict.fromkeys(mistakes))
        super().__init__("\n".join(self.mistakes))


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: PyYAML's own 1.1 reads `1e-4` as text."""


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class SpecFile:
    """The content of a YAML file.

    Attributes:
        file: where it lies.
        content: the mapping at its top.
        lines: the line of each key, nested ones included; items of lists are keys too: `("base", "0")`.
    """

    file: Path
    content: dict[str, Any]
    lines: Mapping[Keys, int]

    def place_of(self, *keys: str) -> str:
        """`file:line` of a key, or of the closest one that it is in."""
        for length in range(len(keys), 0, -1):
            if keys[:length] in self.lines:
                return f"{shown(self.file)}:{self.lines[keys[:length]]}"
        return f"{shown(self.file)}:1"

    def layer(self, *below: str) -> Layer:
        """The config that stands below some keys, or all of the file."""
        content: Any = self.content
        for key in below:
            content = content.get(key) or {}
        depth = len(below)
        places = {
            keys[depth:]: self.place_of(*keys) for keys in self.lines if keys[:depth] == below and len(keys) > depth
        }
        return Layer(content, places)

    def unknown_keys(self, known: Sequence[str], *below: str) -> list[str]:
        """A mistake for each key of a mapping that is not among those it may have."""
        content: Any = self.content
        for key in below:
            content = content[key]
        where = f"{'.'.join(below)}: " if below else ""
        return [
            f"{self.place_of(*below, str(key))}: {where}unknown key {key}; "
            + close_to(key, known, otherwise=f"valid keys are {', '.join(known)}")
            for key in content
            if key not in known
        ]


def read_yaml(file: Path) -> SpecFile:
    """Read a file that holds a mapping.

    Raises:
        SpecError: with file and line, if it cannot be read, is no YAML, holds no mapping or a key twice.
    """
    try:
        loader = _Loader(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError([f"{shown(file)}: cannot be read: {error}"]) from error
    try:
        root = loader.get_single_node()
        lines = {} if root is None else dict(_lines(root))
        twice = [] if root is None else list(_twice(root))
        content = None if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        said = ", ".join(text for text in (error.context, error.problem) if text)
        raise SpecError([f"{shown(file)}:{line}: no valid YAML: {said}"]) from error
    finally:
        loader.dispose()
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise SpecError([f"{shown(file)}:1: expected a mapping at its top, got {type(content).__name__}"])
    if twice:
        raise SpecError([f"{shown(file)}:{line}: {key} stands here a second time; keep one" for key, line in twice])
    return SpecFile(file, content, lines)


def read_value(text: str) -> Any:
    """A single value, as in a file.

    Example:
        >>> read_value("1e-4"), read_value("[1, 2]"), read_value("rmi")
        (0.0001, [1, 2], 'rmi')
    """
    return yaml.load(text, Loader=_Loader)


def _lines(node: yaml.Node, above: Keys = ()) -> Iterator[tuple[Keys, int]]:
    for key, place, value in _entries(node):
        yield (*above, key), place.start_mark.line + 1
        yield from _lines(value, (*above, key))


def _twice(node: yaml.Node) -> Iterator[tuple[str, int]]:
    seen = set()
    for key, place, value in _entries(node):
        if key in seen:
            yield key, place.start_mark.line + 1
        seen.add(key)
        yield from _twice(value)


def _entries(node: yaml.Node) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Key, the node that has its place, and the node of its value."""
    if isinstance(node, yaml.MappingNode):
        yield from ((str(key.value), key, value) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from ((str(index), value, value) for index, value in enumerate(node.value))
