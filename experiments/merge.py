"""Merging of configs, with the source of every value."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Keys = tuple[str, ...]
# a key that selects the class or loss whose arguments its siblings are
SELECTORS = ("class_path", "name")
# paths of mappings with a class and its arguments
CLASSES = (("data",), ("model",), *(("model", "init_args", key) for key in ("optimizer", "lr_scheduler")))


@dataclass
class MergedConfig:
    """A config merged from several sources, in which later ones override earlier ones.

    Mappings are merged and everything else is replaced, as with several `--config` files of LightningCLI. In addition,
    where a mapping's `class_path` or `name` changes, its other keys are dropped, since they are arguments of another
    class. Arguments can be added to a loss that is given by its name alone.

    Attributes:
        values: the merged config.
        sources: the source of each leaf, by its path.

    Example:
        >>> config = MergedConfig()
        >>> config.add({"loss": {"name": "rmi", "region_size": 3}, "lr": 0.1}, source="fragment")
        >>> config.add({"loss": {"name": "bce"}}, source="row")
        >>> config.values, config.sources[("loss", "name")]
        ({'loss': {'name': 'bce'}, 'lr': 0.1}, 'row')
    """

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[Keys, str] = field(default_factory=dict)

    def add(self, change: Mapping[str, Any], *, source: str) -> None:
        """Merge a source over the present values."""
        self._add(self.values, change, (), source)

    def set(self, dotted: str, value: Any, *, source: str) -> None:
        """Merge one value as `add` does, with a dotted key as in `keys_of`."""
        keys = keys_of(dotted)
        if keys in CLASSES and isinstance(value, str):  # `--model.optimizer AdamW`
            keys = (*keys, "class_path")
        for key in reversed(keys):
            value = {key: value}
        self.add(value, source=source)

    def source_of(self, keys: Keys, *, default: str) -> str:
        """The source of a value: its own, that of the closest mapping around it or of a value in it, or a default."""
        for length in range(len(keys), 0, -1):
            if keys[:length] in self.sources:
                return self.sources[keys[:length]]
        below = (source for path, source in self.sources.items() if path[: len(keys)] == keys)
        return next(below, default)

    def _add(self, here: dict[str, Any], change: Mapping[str, Any], above: Keys, source: str) -> None:
        if any(key in here and key in change and not _is_same(key, here[key], change[key]) for key in SELECTORS):
            here.clear()
            self._forget(above)
        for key, value in change.items():
            keys = (*above, str(key))
            if isinstance(value, Mapping):
                if not isinstance(here.get(key), dict):
                    self._make_mapping(here, key, keys)
                self._add(here[key], value, keys, source)
            else:
                self._forget(keys)
                here[key] = copy.deepcopy(value)
                self.sources[keys] = source

    def _make_mapping(self, here: dict[str, Any], key: str, keys: Keys) -> None:
        """Replace a value by a mapping: empty, or the name of a loss that is given by its name alone."""
        former, source = here.get(key), self.sources.get(keys, "")
        self._forget(keys)
        here[key] = {}
        if key == "loss" and isinstance(former, str):
            self._add(here[key], {"name": former}, keys, source)

    def _forget(self, keys: Keys) -> None:
        for path in [path for path in self.sources if path[: len(keys)] == keys]:
            del self.sources[path]


def _is_same(key: str, one: Any, other: Any) -> bool:
    """Whether two names mean the same class: those of this package and PyTorch may be given by short names."""
    short, full = sorted((str(one), str(other)), key=lambda name: "." in name)
    known = "." not in short and full.startswith(("beyondpixel.", "torch."))
    return one == other or (key == "class_path" and known and full.endswith(f".{short}"))


def leaves(config: Mapping[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Yield the paths and values of a config, depth first.

    Example:
        >>> list(leaves({"model": {"lr": 0.1, "loss": {}}}))
        [(('model', 'lr'), 0.1), (('model', 'loss'), {})]
    """
    for key, value in config.items():
        keys = (*above, str(key))
        if isinstance(value, Mapping) and value:
            yield from leaves(value, keys)
        else:
            yield keys, value


def keys_of(dotted: str) -> Keys:
    """The path of a dotted key; `init_args` of a class may be omitted, as on a command line.

    Example:
        >>> keys_of("model.loss.pooling"), keys_of("trainer.max_steps"), keys_of("model.class_path")
        (('model', 'init_args', 'loss', 'pooling'), ('trainer', 'max_steps'), ('model', 'class_path'))
        >>> keys_of("model.optimizer.lr"), keys_of("model")
        (('model', 'init_args', 'optimizer', 'init_args', 'lr'), ('model', 'init_args'))
    """
    keys: Keys = ()
    for key in dotted.split("."):
        if keys in CLASSES and key not in ("class_path", "init_args"):
            keys = (*keys, "init_args")
        keys = (*keys, key)
    return (*keys, "init_args") if keys in (("data",), ("model",)) else keys


def suggestion(word: object, known: Iterable[str]) -> str:
    """`did you mean ...?` for a mistyped word, or the list of valid words.

    Example:
        >>> suggestion("regoin_size", ["region_size", "pooling"]), suggestion("x", ["a", "b"])
        ('did you mean region_size?', 'expected one of a, b')
    """
    words = list(dict.fromkeys(known))
    return did_you_mean(word, words) or f"expected one of {', '.join(words)}"


def did_you_mean(word: object, known: Sequence[str]) -> str:
    """`did you mean ...?` for a mistyped word, empty if none is close.

    Example:
        >>> did_you_mean("avgg", ["avg", "max"]), did_you_mean("sum", ["avg", "max"])
        ('did you mean avg?', '')
    """
    close = difflib.get_close_matches(str(word), known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else ""
