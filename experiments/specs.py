"""Run specs: a YAML file that says what one ablation changes, resolved to a full config.

A spec is a diff. `base` names fragments of `experiments/base/`, merged in order; `config` holds the keys of
LightningCLI that this row changes; `reference` records a published number. Its name is its path: the spec
`runs/camvid_small/rmi.yaml` is row `rmi` of table `camvid_small`.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from beyondpixel.experiments.errors import UserError

BASE = Path(__file__).parent / "base"
RUNS = Path(__file__).parent / "runs"
SPEC_KEYS = ("base", "config", "reference")
REFERENCE_KEYS = ("metric", "value", "source")
# a key that says which class or which loss the keys beside it belong to
SELECTORS = ("class_path", "name")


@dataclass(frozen=True)
class Spec:
    """One row of a table.

    Attributes:
        table: the folder's name.
        row: the file's name without `.yaml`.
        file: where it was read.
        config: the resolved LightningCLI config, without a seed.
        reference: `metric`, `value`, `source` of a published number; empty where there is none.
    """

    table: str
    row: str
    file: Path
    config: dict[str, Any]
    reference: dict[str, Any]

    @property
    def name(self) -> str:
        """`table/row`."""
        return f"{self.table}/{self.row}"


def find_specs(places: Sequence[str | Path]) -> list[Path]:
    """The spec files that the given files, folders or names stand for.

    Args:
        places: YAML files, folders with YAML files, or names such as `camvid_small` and `camvid_small/rmi`,
            looked up among the specs that come with the package.

    Raises:
        UserError: if a place does not exist or holds no spec.

    Example:
        >>> [file.stem for file in find_specs(["demo"])]
        ['bce', 'ce', 'rmi']
    """
    files: list[Path] = []
    for place in places:
        candidates = [Path(place), RUNS / place, RUNS / f"{place}.yaml"]
        found = next((path for path in candidates if path.exists()), None)
        if found is None:
            known = sorted({p.parent.name for p in RUNS.rglob("*.yaml")} | {_name(p) for p in RUNS.rglob("*.yaml")})
            close = difflib.get_close_matches(str(place), known, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"tables that come with it: {', '.join(known)}"
            raise UserError(f"no run spec or folder named {place}; {hint}")
        here = sorted(found.rglob("*.yaml")) if found.is_dir() else [found]
        if not here:
            raise UserError(f"no run spec in {found}: expected files that end in .yaml")
        files.extend(file for file in here if file not in files)
    return files


def load_spec(file: str | Path, overrides: Mapping[str, Any] | None = None) -> Spec:
    """Read a spec and resolve it.

    Args:
        file: the YAML file.
        overrides: dotted LightningCLI keys to values, e.g. `{"data.root": "/data/CamVid"}`; they win.

    Raises:
        UserError: naming the file, if it is no YAML, holds an unknown key or names a fragment that is not there.

    Example:
        >>> spec = load_spec(RUNS / "demo" / "rmi.yaml", {"trainer.max_steps": 5})
        >>> spec.name, spec.config["model"]["init_args"]["loss"]["name"], spec.config["trainer"]["max_steps"]
        ('demo/rmi', 'rmi', 5)
    """
    file = Path(file).resolve()
    content = _read(file)
    _check_keys(content, SPEC_KEYS, f"{file}")
    reference = content.get("reference") or {}
    _check_keys(reference, REFERENCE_KEYS, f"{file}: reference")
    config: dict[str, Any] = {}
    for name in content.get("base") or []:
        fragment = BASE / f"{name}.yaml"
        if not fragment.exists():
            known = sorted(str(p.relative_to(BASE).with_suffix("")) for p in BASE.rglob("*.yaml"))
            raise UserError(f"{file}: base names the fragment {name!r}, but there are only: {', '.join(known)}")
        config = merge(config, _read(fragment))
    config = merge(config, content.get("config") or {})
    for key, value in (overrides or {}).items():
        config = merge(config, _nested(key, value))
    for part in ("model", "data"):
        if "class_path" not in config.get(part, {}):
            raise UserError(f"{file}: no {part}.class_path; add it or a base fragment that has it")
    return Spec(table=file.parent.name, row=file.stem, file=file, config=config, reference=reference)


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


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`--data.root DIR --trainer.max_steps=100` as a mapping, values read as YAML.

    Raises:
        UserError: for a word that is no `--part.key value`.

    Example:
        >>> parse_overrides(["--data.root", "/tmp/CamVid", "--trainer.max_steps=100"])
        {'data.root': '/tmp/CamVid', 'trainer.max_steps': 100}
    """
    overrides: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or key.split(".")[0] not in ("data", "model", "trainer") or "." not in key:
            raise UserError(f"unknown argument {word}: config keys are given as --data.KEY, --model.KEY, --trainer.KEY")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{word} has no value: expected {word} VALUE")
            value = rest.pop(0)
        overrides[key] = yaml.safe_load(value)
    return overrides


def _nested(key: str, value: Any) -> dict[str, Any]:
    """`data.root` → {data: {init_args: {root: value}}}, the way LightningCLI reads it on the command line."""
    parts = key.split(".")
    if parts[0] in ("data", "model") and parts[1] not in ("class_path", "init_args"):
        parts.insert(1, "init_args")
    for part in reversed(parts):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no valid YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{file}: expected a mapping at its top, got {type(content).__name__}")
    return content or {}


def _check_keys(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    unknown = [key for key in content if key not in known]
    if unknown:
        raise UserError(f"{where}: unknown key {', '.join(map(str, unknown))}; valid keys are {', '.join(known)}")


def _name(file: Path) -> str:
    return str(file.relative_to(RUNS).with_suffix(""))
