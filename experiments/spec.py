"""Run specs: YAML files that say what each row of an ablation changes.

A spec is a diff. `base` names fragments of `experiments/base/`, merged in order; `config` holds the keys of
LightningCLI that the row changes; `evaluations` lists additional tests of its trained model; `reference` records
published numbers. Its name is its path: the spec `runs/camvid_small/rmi.yaml` is row `rmi` of table `camvid_small`. A
file with a `grid` holds several rows (see `grid.py`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.grid import Changes, expand_grid
from beyondpixel.experiments.merge import MergedConfig, suggestion
from beyondpixel.experiments.natural_order import natural_order
from beyondpixel.experiments.yaml_files import read_value, read_yaml, shown

BASE = Path(__file__).parent / "base"
RUNS = Path(__file__).parent / "runs"
SHOWN_LENGTH = 100  # of an unknown name
PARTS = ("model", "data", "trainer")
NUMBER = int | float
Fragments = Mapping[str, dict[str, Any]]  # by name
# for each key of a mapping: its type, the type of its entries, and a description
Keys = Mapping[str, tuple[Any, Any, str]]
MAPPING = (dict, None, "keys and values")
CONFIG_KEYS: Keys = dict.fromkeys(PARTS, MAPPING)
SPEC_KEYS: Keys = {
    "base": (list, str, "a list of fragments"),
    "config": MAPPING,
    "reference": MAPPING,
    "evaluations": (list, str, "a list of inferers such as crf:5"),
    "grid": (object, None, "axes"),  # grid.py checks them
    "row": (object, None, "a name"),
}
REFERENCE_KEYS: Keys = {
    "metric": (str, None, "the name of a score, such as test/mIoU"),
    "value": (NUMBER, None, "a number, in percent"),
    "source": (str, None, "where it is published"),
    "data_set": (str, None, "the data set of the published number, if it is another: then its order alone is compared"),
    "deviations": (str, None, "what is known to differ from the published setting"),
    "per_class": (dict, NUMBER, "class names with a number each, in percent"),
    "inference_seconds": (NUMBER, None, "seconds per image"),
    "evaluations": (dict, dict, "evaluations, such as crf:5, with a reference each"),
}


class SpecError(UserError):
    """All errors of some specs.

    Attributes:
        errors: one text each, `file: key: what is wrong`.
        valid: the specs, or runs, without errors, which can be checked further.
    """

    def __init__(self, errors: Sequence[str], valid: Sequence[Any] = ()) -> None:
        self.errors = tuple(dict.fromkeys(errors))
        self.valid = valid
        super().__init__("\n".join(self.errors))


@dataclass(frozen=True)
class RunSpec:
    """One row of a table.

    Attributes:
        table: the folder's name.
        row: the file's name without `.yaml`, or a name that its grid makes.
        file: the file that it was read from.
        merged: the keys given by fragments, row, grid and command line, with their sources; no defaults.
        reference: the given keys of `REFERENCE_KEYS`; empty if there is no published number.
        evaluations: inferers that the trained model is also tested with, such as `crf:5` or `tta:flip`.
    """

    table: str
    row: str
    file: Path
    merged: MergedConfig = field(repr=False)
    reference: dict[str, Any] = field(repr=False)
    evaluations: tuple[str, ...]

    @property
    def name(self) -> str:
        """`table/row`."""
        return f"{self.table}/{self.row}"

    @property
    def config(self) -> dict[str, Any]:
        """The merged keys, as LightningCLI takes them."""
        return self.merged.values


def load_specs(locations: Sequence[str | Path], overrides: Mapping[str, Any] | None = None) -> list[RunSpec]:
    """Read the rows of files, folders or names.

    Args:
        locations: YAML files, folders with YAML files, rows in a folder (`FOLDER/ROW`), or names such as `camvid_small`
            and `camvid_small/rmi`, looked up among the specs that come with the package.
        overrides: dotted LightningCLI keys to values, e.g. `{"data.root": "/data/CamVid"}`; they override every spec.

    Raises:
        SpecError: naming file and key of every error in all files: invalid YAML, an unknown key or fragment, ...
        UserError: if a location does not exist or holds no spec, or if two files have a row of the same name.

    Example:
        >>> (spec,) = load_specs(["demo/rmi"], {"trainer.max_steps": 5})
        >>> spec.name, spec.config["model"]["init_args"]["loss"]["name"], spec.config["trainer"]["max_steps"]
        ('demo/rmi', 'rmi', 5)
    """
    errors: list[str] = []
    found: list[RunSpec] = []
    for location in locations:
        files, row = _locate(location)
        specs: list[RunSpec] = []
        for file in files:
            try:
                specs += _read_spec_file(file, overrides or {})
            except UserError as error:
                errors += str(error).splitlines()
        wanted = [spec for spec in specs if row in (None, spec.row)]
        if not wanted and not errors:
            raise UserError(
                f"no row {row} in {shown(files[0].parent)}; {suggestion(row, [spec.row for spec in specs])}"
            )
        found += wanted
    found = _unique(found)
    if errors:
        raise SpecError(errors, found)
    return found


def _unique(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """The specs, each once; two files cannot have the same row."""
    found: dict[str, RunSpec] = {}
    for spec in specs:
        other = found.setdefault(spec.name, spec)
        if other.file != spec.file:
            raise UserError(
                f"{shown(other.file)} and {shown(spec.file)} both have the row {spec.name}, and so the same run "
                "folder; rename one of them"
            )
    return list(found.values())


def parse_overrides(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Parse `--data.root DIR --trainer.max_steps=100` into a mapping of YAML values; return all other arguments.

    Raises:
        UserError: for a dotted option that is no config key, or has no value.

    Example:
        >>> parse_overrides(["camvid", "--data.root", "/tmp/CamVid", "--seeds", "2", "--trainer.max_steps=100"])
        ({'data.root': '/tmp/CamVid', 'trainer.max_steps': 100}, ['camvid', '--seeds', '2'])
    """
    overrides: dict[str, Any] = {}
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or "." not in key:
            others.append(word)
            continue
        if key.split(".")[0] not in PARTS:
            raise UserError(f"unknown argument {word}: config keys are given as --data.KEY, --model.KEY, --trainer.KEY")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{word} has no value: expected {word} VALUE")
            value = rest.pop(0)
        overrides[key] = read_value(value)
    return overrides, others


def _locate(location: str | Path) -> tuple[list[Path], str | None]:
    """Find the files of a location, and the name of the row if it is one of several."""
    for path in (Path(location), RUNS / location):
        # unlike Path's methods, those of os.path return False for a path that is too long or not accessible
        if os.path.isfile(path):  # noqa: PTH113
            return [path.absolute()], None
        if os.path.isdir(path):  # noqa: PTH112
            try:
                files = sorted(path.absolute().rglob("*.yaml"), key=natural_order)
            except OSError as error:  # a subfolder that disappears, or cannot be listed
                raise UserError(f"{shown(path)}: cannot be searched for run specs: {error}") from error
            if not files:
                raise UserError(f"no run spec in {location}: expected files that end in .yaml")
            return files, None
        there = os.path.isdir(path.parent)  # noqa: PTH112
        siblings = sorted(path.parent.absolute().glob("*.yaml"), key=natural_order) if there else []
        if siblings and len(path.parts) > 1 and (path.parent != RUNS):
            own = path.parent.absolute() / f"{path.name}.yaml"
            return ([own], None) if own in siblings else (siblings, path.name)
    tables = sorted({file.parent.name for file in RUNS.rglob("*.yaml")})
    raise UserError(f"no run spec or folder named {str(location)[:SHOWN_LENGTH]}; {suggestion(location, tables)}")


def _read_spec_file(file: Path, overrides: Mapping[str, Any]) -> list[RunSpec]:
    content = read_yaml(file)
    with _errors_in(file):
        _raise_any(_check(content, SPEC_KEYS) or _check(content.get("config", {}), CONFIG_KEYS, "config."))
        if "row" in content and "grid" not in content:
            raise ValueError("row: expected only with grid; remove it, since the file's name is the row's name")
        rows = expand_grid(content["grid"], content.get("row")) if "grid" in content else {file.stem: []}
        reference = content.get("reference", {})
        _raise_any(_check_references(reference, rows))
        fragments = _read_fragments(name for changes in rows.values() for name in _fragments_of(content, changes))
        merged = {row: _merge(content, changes, fragments, overrides) for row, changes in rows.items()}
    evaluations = tuple(content.get("evaluations", ()))
    return [
        RunSpec(file.parent.name, row, file, config, _reference_of(reference, row), evaluations)
        for row, config in merged.items()
    ]


@contextmanager
def _errors_in(file: Path) -> Iterator[None]:
    """Put the file's name before each line of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise SpecError([f"{shown(file)}: {line}" for line in str(error).splitlines()]) from error


def _raise_any(errors: Iterable[str]) -> None:
    text = "\n".join(errors)
    if text:
        raise ValueError(text)


def _read_fragments(names: Iterable[str]) -> Fragments:
    files = {name: BASE / f"{name}.yaml" for name in names}
    missing = [name for name, file in files.items() if not os.path.isfile(file)]  # noqa: PTH113
    if missing:
        known = sorted(path.relative_to(BASE).with_suffix("").as_posix() for path in BASE.rglob("*.yaml"))
        _raise_any(f"base: no fragment {name[:SHOWN_LENGTH]!r}; {suggestion(name, known)}" for name in missing)
    return {name: read_yaml(file) for name, file in files.items()}


def _fragments_of(content: Mapping[str, Any], changes: Changes) -> list[str]:
    added = [value if isinstance(value, list) else [value] for key, value in changes if key == "base"]
    return [*content.get("base", ()), *itertools.chain(*added)]


def _merge(
    content: Mapping[str, Any], changes: Changes, fragments: Fragments, overrides: Mapping[str, Any]
) -> MergedConfig:
    merged = MergedConfig()
    for name in _fragments_of(content, changes):
        merged.add(fragments[name], source=f"base/{name}")
    merged.add(content.get("config", {}), source="row")
    for key, value in changes:
        if key != "base":
            merged.set(key, value, source="row")
    for key, value in overrides.items():
        merged.set(key, value, source="command line")
    missing = [part for part in ("model", "data") if "class_path" not in (merged.values.get(part) or {})]
    _raise_any(f"{part}.class_path: not given; add it or a base fragment that has it" for part in missing)
    return merged


def _check(content: Mapping[str, Any], keys: Keys, above: str = "") -> list[str]:
    """List the errors in the keys and values of a mapping, one text each."""
    errors = [f"{above}{key}: unknown key; {suggestion(key, keys)}" for key in content if key not in keys]
    for key, (kind, entries, what) in keys.items():
        if key in content and not _has_type(content[key], kind, entries):
            errors.append(f"{above}{key}: expected {what}, got {content[key]!r}")
    return errors


def _has_type(value: Any, kind: Any, entries: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not isinstance(value, kind) or (kind is NUMBER and isinstance(value, bool)):
        return False
    return entries is None or all(_has_type(part, entries, None) for part in parts)


def _check_references(reference: dict[str, Any], rows: Mapping[str, Changes]) -> list[str]:
    values = reference["value"] if isinstance(reference.get("value"), dict) else {}
    unknown = [f"reference.value.{row}: no such row; {suggestion(row, rows)}" for row in values if row not in rows]
    return unknown or [
        error for row in values or rows for error in _check_reference(_reference_of(reference, row), "reference.")
    ]


def _check_reference(reference: Mapping[str, Any], above: str) -> list[str]:
    errors = _check(reference, REFERENCE_KEYS, above)
    if reference and not {"value", "evaluations"} & set(reference):
        errors.append(f"{above}value: not given; expected {REFERENCE_KEYS['value'][-1]}")
    if not errors:
        for evaluation, of_one in reference.get("evaluations", {}).items():
            errors += _check_reference(of_one, f"{above}evaluations.{evaluation}.")
    return errors


def _reference_of(reference: dict[str, Any], row: str) -> dict[str, Any]:
    """The reference of a row; in a grid, `value` may hold the numbers of several rows."""
    if isinstance(reference.get("value"), dict):
        return {**reference, "value": reference["value"][row]} if row in reference["value"] else {}
    return dict(reference)
