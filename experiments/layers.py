"""Layers of a config, laid over one another, and which of them gave a key.

A run spec's config is made of base fragments, the row's own keys, a grid's values and the command line's overrides.
What is wrong with a key is best told where somebody wrote it.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Keys = tuple[str, ...]
# a key that says which class or which loss the keys beside it belong to
SELECTORS = ("class_path", "name")


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base` with `change` laid over it: mappings merge, everything else is replaced.

    Where a mapping's `class_path` or `name` changes, the keys beside it belong to another class and go.

    Example:
        >>> merge({"loss": {"name": "rmi", "region_size": 3}, "lr": 0.1}, {"loss": {"name": "bce"}})
        {'loss': {'name': 'bce'}, 'lr': 0.1}
        >>> merge({"loss": {"name": "rmi", "region_size": 3}}, {"loss": {"pooling": "max"}})
        {'loss': {'name': 'rmi', 'region_size': 3, 'pooling': 'max'}}
    """
    if any(key in base and key in change and base[key] != change[key] for key in SELECTORS):
        return copy.deepcopy(dict(change))
    merged = copy.deepcopy(dict(base))
    for key, value in change.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else copy.deepcopy(value)  # type: ignore[arg-type]
    return merged


def keys_of(dotted: str) -> Keys:
    """The keys that a dotted one stands for; `init_args` of model and data may be left out, as on a command line.

    Example:
        >>> keys_of("model.loss.pooling"), keys_of("trainer.max_steps"), keys_of("model.class_path")
        (('model', 'init_args', 'loss', 'pooling'), ('trainer', 'max_steps'), ('model', 'class_path'))
    """
    first, *rest = dotted.split(".")
    if first in ("data", "model") and rest[:1] not in (["class_path"], ["init_args"]):
        rest.insert(0, "init_args")
    return (first, *rest)


def nested(keys: Keys, value: Any) -> dict[str, Any]:
    """A value at the end of keys.

    Example:
        >>> nested(("trainer", "max_steps"), 5)
        {'trainer': {'max_steps': 5}}
    """
    for key in reversed(keys):
        value = {key: value}
    return value  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Layer:
    """One source of config keys.

    Attributes:
        config: what it gives.
        places: for each of its keys, nested ones included, where it stands: `file:line`, or an option's name.
    """

    config: Mapping[str, Any]
    places: Mapping[Keys, str]

    @classmethod
    def at(cls, place: str, keys: Keys, value: Any) -> Layer:
        """A layer of one value, which stands in one place with all that is in it."""
        config = nested(keys, value)
        return cls(config, {below: place for below, _ in _walk(config) if len(below) >= len(keys)})


@dataclass(frozen=True)
class Origin:
    """Where a config comes from.

    Attributes:
        file: the spec.
        layers: later ones win.
    """

    file: Path
    layers: tuple[Layer, ...] = ()

    def __str__(self) -> str:
        """The spec's file."""
        return shown(self.file)

    def config(self) -> dict[str, Any]:
        """All layers, laid over one another."""
        merged: dict[str, Any] = {}
        for layer in self.layers:
            merged = merge(merged, layer.config)
        return merged

    def place_of(self, keys: Keys) -> str:
        """Where a key was given last, or the closest one that it is in, or else the spec's file.

        Example:
            >>> fragment = Layer({"model": {"init_args": {"lr": 1}}}, {("model",): "a:1", ("model", "init_args"): "a:2",
            ...                                                        ("model", "init_args", "lr"): "a:3"})
            >>> origin = Origin(Path("row.yaml"), (fragment, Layer.at("--model.dropout", keys_of("model.dropout"), 2)))
            >>> [origin.place_of(keys_of(key)) for key in ("model.lr", "model.dropout", "model.loss", "trainer")]
            ['a:3', '--model.dropout', 'a:2', 'row.yaml']
        """
        for length in range(len(keys), 0, -1):
            for layer in reversed(self.layers):
                if keys[:length] in layer.places:
                    return layer.places[keys[:length]]
        return str(self)

    def place_of_complaint(self, said: str, *, otherwise: Keys) -> str:
        """Where the argument was given that a class refuses; our messages begin with its name.

        Args:
            said: the message.
            otherwise: the keys to look for if it does not begin with one that was given.

        Example:
            >>> origin = Origin(Path("row.yaml"), (Layer.at("--data.batch_size", keys_of("data.batch_size"), 0),))
            >>> origin.place_of_complaint("batch_size must be at least 1, got 0", otherwise=("data",))
            '--data.batch_size'
        """
        word = said.partition(" ")[0].partition("=")[0].rstrip(":")
        parts: list[Keys] = [("data", "init_args"), ("model", "init_args"), ("model", "init_args", "loss")]
        given = ((*part, word) for part in parts if any((*part, word) in layer.places for layer in self.layers))
        return self.place_of(next(given, otherwise))


def shown(file: Path) -> str:
    """A file's path as it is best read: from the working directory where it lies below it."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def close_to(word: object, known: Iterable[str], *, otherwise: str) -> str:
    """`did you mean ...?` for a mistyped word, or what to say where nothing is close.

    Example:
        >>> close_to("regoin_size", ["region_size", "pooling"], otherwise="")
        'did you mean region_size?'
    """
    close = difflib.get_close_matches(str(word), list(dict.fromkeys(known)), n=3)
    return f"did you mean {' or '.join(close)}?" if close else otherwise


def _walk(config: Mapping[str, Any], above: Keys = ()) -> Iterable[tuple[Keys, Any]]:
    for key, value in config.items():
        keys = (*above, str(key))
        yield keys, value
        if isinstance(value, Mapping):
            yield from _walk(value, keys)
