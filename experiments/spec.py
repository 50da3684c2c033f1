"""Run specs: YAML files that say what each row of an ablation changes.

A spec is a diff. `base` names fragments of `experiments/base/`, merged in order; `config` holds the keys of
LightningCLI that the row changes; `evaluations` lists what else its trained model is tested with; `reference` records
published numbers. Its name is its path: the spec `runs/camvid_small/rmi.yaml` is row `rmi` of table `camvid_small`. A
file with a `grid` holds several rows (see `grid.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.grid import GridRow, expand_grid
from beyondpixel.experiments.merge import MergedConfig, keys_of, nested, suggestion
from beyondpixel.experiments.natural_order import natural_order
from beyondpixel.experiments.yaml_files import is_usable, read_value, read_yaml, shown

BASE = Path(__file__).parent / "base"
RUNS = Path(__file__).parent / "runs"
SHOWN_LENGTH = 100  # of a name that is none
SPEC_KEYS = ("base", "config", "reference", "evaluations", "grid", "row")
PARTS = ("model", "data", "trainer")
REFERENCE_KEYS = {
    "metric": "the name of a score, such as test/mIoU",
    "value": "a number, in percent",
    "source": "where it is printed",
    "deviations": "what is known to differ from the published setting",
    "per_class": "class names with a number each, in percent",
    "inference_seconds": "seconds an image",
    "evaluations": "evaluations, such as crf:5, with a reference each",
}


class SpecError(UserError):
    """Everything that is wrong with some specs.

    Attributes:
        errors: one text each, `file: key: what is wrong`.
    """

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors = tuple(dict.fromkeys(errors))
        super().__init__("\n".join(self.errors))


@dataclass(frozen=True)
class RunSpec:
    """One row of a table.

    Attributes:
        table: the folder's name.
        row: the file's name without `.yaml`, or a name that its grid makes.
        file: where it was read.
        merged: the keys that fragments, row, grid and command line give, with their sources; no defaults.
        reference: the keys of `REFERENCE_KEYS` that are given of a published number; empty where there is none.
        evaluations: what the trained model is also tested with: words such as `crf:5` or `tta:flip`.
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


def load_specs(places: Sequence[str | Path], overrides: Mapping[str, Any] | None = None) -> list[RunSpec]:
    """Read the rows that files, folders or names stand for.

    Args:
        places: YAML files, folders with YAML files, rows in a folder (`FOLDER/ROW`), or names such as `camvid_small`
            and `camvid_small/rmi`, looked up among the specs that come with the package.
        overrides: dotted LightningCLI keys to values, e.g. `{"data.root": "/data/CamVid"}`; they win over every spec.

    Raises:
        SpecError: naming file and key of all that is wrong in all files: no YAML, an unknown key, no such fragment, ...
        UserError: if a place does not exist or holds no spec, or if two files in a folder have rows of one name.

    Example:
        >>> (spec,) = load_specs(["demo/rmi"], {"trainer.max_steps": 5})
        >>> spec.name, spec.config["model"]["init_args"]["loss"]["name"], spec.config["trainer"]["max_steps"]
        ('demo/rmi', 'rmi', 5)
    """
    errors: list[str] = []
    found: dict[tuple[Path, str], RunSpec] = {}

    @cache
    def rows_of(file: Path) -> tuple[RunSpec, ...]:
        try:
            return tuple(_read_spec_file(file, overrides or {}, fragment))
        except SpecError as error:
            errors.extend(error.errors)
            return ()

    fragment = cache(_read_fragment)
    for place in places:
        files, row = _locate(place)
        specs = [spec for file in files for spec in rows_of(file) if row in (None, spec.row)]
        if row is not None and not specs and not errors:
            names = [spec.row for file in files for spec in rows_of(file)]
            raise UserError(f"no row {row} in {shown(files[0].parent)}; {suggestion(row, names)}")
        for spec in specs:
            other = found.setdefault((spec.file.parent, spec.row), spec)
            if other.file != spec.file:
                raise UserError(
                    f"{shown(other.file)} and {shown(spec.file)} both have a row {spec.row}; rename one of them"
                )
    if errors:
        raise SpecError(errors)
    return list(found.values())


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`--data.root DIR --trainer.max_steps=100` as a mapping, values read as YAML.

    Raises:
        UserError: for a word that is not `--part.key value`.

    Example:
        >>> parse_overrides(["--data.root", "/tmp/CamVid", "--trainer.max_steps=100"])
        {'data.root': '/tmp/CamVid', 'trainer.max_steps': 100}
    """
    overrides: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or key.split(".")[0] not in PARTS or "." not in key:
            raise UserError(f"unknown argument {word}: config keys are given as --data.KEY, --model.KEY, --trainer.KEY")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{word} has no value: expected {word} VALUE")
            value = rest.pop(0)
        overrides[key] = read_value(value)
    return overrides


def _locate(place: str | Path) -> tuple[list[Path], str | None]:
    """The files that a place stands for, and the row that is meant, if it is one of several."""
    for path in (Path(place), RUNS / place):
        if not is_usable(path):
            continue
        if path.is_file():
            return [path.absolute()], None
        if path.is_dir():
            files = sorted(path.absolute().rglob("*.yaml"), key=natural_order)
            if not files:
                raise UserError(f"no run spec in {place}: expected files that end in .yaml")
            return files, None
        siblings = sorted(path.parent.absolute().glob("*.yaml"), key=natural_order)
        if siblings and len(path.parts) > 1 and (path.parent != RUNS):
            own = path.parent.absolute() / f"{path.name}.yaml"
            return ([own], None) if own in siblings else (siblings, path.name)
    tables = sorted({file.parent.name for file in RUNS.rglob("*.yaml")})
    raise UserError(f"no run spec or folder named {str(place)[:SHOWN_LENGTH]}; {suggestion(place, tables)}")


def _read_fragment(name: str) -> dict[str, Any]:
    file = BASE / f"{name}.yaml"
    if not (is_usable(file) and file.is_file()):
        known = sorted(path.relative_to(BASE).with_suffix("").as_posix() for path in BASE.rglob("*.yaml"))
        raise UserError(f"no fragment {name[:SHOWN_LENGTH]!r}; {suggestion(name, known)}")
    return read_yaml(file)


def _read_spec_file(
    file: Path, overrides: Mapping[str, Any], fragment: Callable[[str], dict[str, Any]]
) -> list[RunSpec]:
    try:
        content = read_yaml(file)
    except UserError as error:
        raise SpecError([str(error)]) from error
    errors = [*_unknown(content, SPEC_KEYS), *_wrong_values(content)]
    rows: list[GridRow] = []
    if not errors and "grid" in content:
        try:
            rows = expand_grid(content["grid"], content.get("row"))
        except ValueError as error:
            errors += str(error).splitlines()
    elif not errors:
        rows = [GridRow(file.stem, (), ())]
        if "row" in content:
            errors.append("row: names the rows of a grid; without one, the file's name is the row's")
    errors += _wrong_reference(content, [row.name for row in rows])
    if errors:
        raise SpecError([f"{shown(file)}: {text}" for text in errors])
    base = [*(content.get("base") or ()), *(name for row in rows for name in row.base)]
    fragments: dict[str, dict[str, Any]] = {}
    for name in base:
        try:
            fragments[name] = fragment(name)
        except UserError as error:
            errors.append(f"{shown(file)}: base: {error}")
    if errors:
        raise SpecError(errors)
    return [_spec_of(file, content, row, fragments, overrides) for row in rows]


def _spec_of(
    file: Path,
    content: Mapping[str, Any],
    row: GridRow,
    fragments: Mapping[str, dict[str, Any]],
    overrides: Mapping[str, Any],
) -> RunSpec:
    merged = MergedConfig()
    for name in (*(content.get("base") or ()), *row.base):
        merged.add(fragments[name], source=f"base/{name}")
    merged.add(content.get("config") or {}, source="row")
    for keys, value in row.changes:
        merged.add(nested(keys, value), source="row")
    for key, value in overrides.items():
        merged.add(nested(keys_of(key), value), source="command line")
    missing = [
        f"{shown(file)}: {part}.class_path: not given; add it or a base fragment that has it"
        for part in ("model", "data")
        if not isinstance(merged.values.get(part), dict) or "class_path" not in merged.values[part]
    ]
    if missing:
        raise SpecError(missing)
    evaluations = tuple(map(str, content.get("evaluations") or ()))
    reference = _reference_of(content.get("reference") or {}, row.name)
    return RunSpec(file.parent.name, row.name, file, merged, reference, evaluations)


def _unknown(content: Mapping[str, Any], known: Sequence[str], above: str = "") -> list[str]:
    return [f"{above}{key}: unknown key; {suggestion(key, known)}" for key in content if key not in known]


def _wrong_values(content: Mapping[str, Any]) -> list[str]:
    errors = [
        f"{key}: expected a list of {what}, got {content[key]!r}"
        for key, what in (("base", "fragments"), ("evaluations", "words such as crf:5"))
        if key in content
        and not (isinstance(content[key], list) and all(isinstance(entry, str) for entry in content[key]))
    ]
    config = content.get("config", {})
    if not isinstance(config, dict):
        return [*errors, f"config: expected keys and values, got {config!r}"]
    errors += _unknown(config, PARTS, "config.")
    return errors + [
        f"config.{part}: expected keys and values, got {value!r}"
        for part, value in config.items()
        if part in PARTS and not isinstance(value, dict)
    ]


def _wrong_reference(content: Mapping[str, Any], rows: Sequence[str], above: str = "reference.") -> list[str]:
    reference = content.get("reference", {})
    if not isinstance(reference, dict):
        return [f"{above[:-1]}: expected keys and values, got {reference!r}"]
    errors = _unknown(reference, list(REFERENCE_KEYS), above)
    for key, value in reference.items():
        if key == "evaluations" and isinstance(value, dict):
            for words, of_one in value.items():
                errors += _wrong_reference({"reference": of_one}, (), f"{above}evaluations.{words}.")
        elif key == "value" and isinstance(value, dict) and "grid" in content:
            errors += [f"{above}value.{row}: no such row; {suggestion(row, rows)}" for row in value if row not in rows]
            errors += [
                f"{above}value.{row}: expected {REFERENCE_KEYS['value']}, got {number!r}"
                for row, number in value.items()
                if not _is_number(number)
            ]
        elif key in REFERENCE_KEYS and not _fits(key, value):
            errors.append(f"{above}{key}: expected {REFERENCE_KEYS[key]}, got {value!r}")
    if reference and not {"value", "evaluations"} & set(reference):
        errors.append(f"{above}value: not given; expected {REFERENCE_KEYS['value']}")
    return errors


def _fits(key: str, value: Any) -> bool:
    if key in ("metric", "source", "deviations"):
        return isinstance(value, str)
    if key == "per_class":
        return isinstance(value, dict) and all(map(_is_number, value.values()))
    return _is_number(value)


def _reference_of(reference: dict[str, Any], row: str) -> dict[str, Any]:
    """The published number of a row; in a grid, `value` may hold those of several rows."""
    if isinstance(reference.get("value"), dict):
        return {**reference, "value": reference["value"][row]} if row in reference["value"] else {}
    return dict(reference)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
