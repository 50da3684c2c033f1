"""Run specs: a YAML file that says what one ablation changes, resolved to a full config.

A spec is a diff. `base` names fragments of `experiments/base/`, merged in order; `config` holds the keys of
LightningCLI that this row changes; `reference` records a published number. Its name is its path: the spec
`runs/camvid_small/rmi.yaml` is row `rmi` of table `camvid_small`. A file with a `grid` is several rows
(see `grids.py`), and one with `evaluate` trains nothing: it tests a finished row once more, with post-processing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.grids import GridRow, grid_rows
from beyondpixel.experiments.layers import Layer, Origin, close_to, keys_of, merge, shown
from beyondpixel.experiments.natural_order import natural_order
from beyondpixel.experiments.spec_checks import mistakes_in
from beyondpixel.experiments.spec_files import SpecError, SpecFile, read_value, read_yaml

__all__ = ["BASE", "RUNS", "RowPlace", "Spec", "SpecError", "find_specs", "load_spec", "merge", "parse_overrides"]

BASE = Path(__file__).parent / "base"
RUNS = Path(__file__).parent / "runs"


@dataclass(frozen=True, order=True)
class RowPlace:
    """Where a row is written.

    Attributes:
        file: the YAML file.
        row: its name; that of the file, but in a grid, which holds several.
    """

    file: Path
    row: str

    @property
    def name(self) -> str:
        """`table/row`."""
        return f"{self.file.parent.name}/{self.row}"


@dataclass(frozen=True)
class Spec:
    """One row of a table.

    Attributes:
        table: the folder's name.
        row: the file's name without `.yaml`, or a name that its grid makes.
        file: where it was read.
        config: the resolved LightningCLI config, without a seed; of a row that only evaluates, the trained row's.
        reference: `metric`, `value`, `source`, `per_class`, `inference_seconds` of a published number; empty where
            there is none.
        evaluate: `run`, the `table/row` whose finished checkpoint this row tests, and how: `postprocess` (`crf:5`),
            `tta`, `window`, `overlap`, as for `beyondpixel test`; None for a row that trains.
        origin: where each key of `config` was given.
    """

    table: str
    row: str
    file: Path
    config: dict[str, Any]
    reference: dict[str, Any]
    evaluate: dict[str, Any] | None
    origin: Origin

    @property
    def name(self) -> str:
        """`table/row`."""
        return f"{self.table}/{self.row}"


def find_specs(places: Sequence[str | Path]) -> list[RowPlace]:
    """The rows that the given files, folders or names stand for.

    Args:
        places: YAML files, folders with YAML files, rows of a grid in a folder (`FOLDER/ROW`), or names such as
            `camvid_small` and `camvid_small/rmi`, looked up among the specs that come with the package.

    Raises:
        UserError: if a place does not exist or holds no spec, or if two files in a folder give rows of one name.

    Example:
        >>> [place.row for place in find_specs(["demo"])]
        ['bce', 'ce', 'rmi']
        >>> [place.name for place in find_specs(["rmi_table3a/avg_df2"])]
        ['rmi_table3a/avg_df2']
    """
    found: list[RowPlace] = []
    for place in places:
        here = next(filter(None, (_rows_at(path) for path in (Path(place), RUNS / place))), None)
        if here is None and Path(place).is_dir():
            raise UserError(f"no run spec in {place}: expected files that end in .yaml")
        if here is None:
            rows = [row for file in RUNS.rglob("*.yaml") for row in _rows_in(file)]
            tables = sorted({row.file.parent.name for row in rows})
            hint = close_to(
                place,
                [*tables, *(row.name for row in rows)],
                otherwise=f"tables that come with it: {', '.join(tables)}",
            )
            raise UserError(f"no run spec or folder named {place}; {hint}")
        found.extend(row for row in here if row not in found)
    _check_names(found)
    return found


def load_spec(place: RowPlace | str | Path, overrides: Mapping[str, Any] | None = None) -> Spec:
    """Read a row and resolve it.

    Args:
        place: what `find_specs` gave, or the YAML file of a single row.
        overrides: dotted LightningCLI keys to values, e.g. `{"data.root": "/data/CamVid"}`; they win.

    Raises:
        SpecError: naming file and line of all that is wrong: no YAML, an unknown key, a fragment that is not there, ...

    Example:
        >>> spec = load_spec(RUNS / "demo" / "rmi.yaml", {"trainer.max_steps": 5})
        >>> spec.name, spec.config["model"]["init_args"]["loss"]["name"], spec.config["trainer"]["max_steps"]
        ('demo/rmi', 'rmi', 5)
    """
    if not isinstance(place, RowPlace):
        place = RowPlace(Path(place).resolve(), Path(place).stem)
    source = read_yaml(place.file)
    mistakes = mistakes_in(source)
    if mistakes:
        raise SpecError(mistakes)
    reference = _reference_of(source, place.row)
    evaluate = source.content.get("evaluate")
    if evaluate is None:
        origin = _origin(source, place.row, overrides or {})
    else:
        trained = load_spec(_trained_row(source), overrides)
        if trained.evaluate is not None:
            where = source.place_of("evaluate", "run")
            raise SpecError(
                [f"{where}: evaluate.run: {trained.name} trains nothing itself; name the row that it tests"]
            )
        origin = trained.origin
    return Spec(place.file.parent.name, place.row, place.file, origin.config(), reference, evaluate, origin)


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
        overrides[key] = read_value(value)
    return overrides


def _rows_at(path: Path) -> list[RowPlace]:
    if path.is_dir():
        return [row for file in sorted(path.rglob("*.yaml"), key=natural_order) for row in _rows_in(file.absolute())]
    if path.is_file():
        return _rows_in(path.absolute())
    if len(path.parts) == 1 or not path.parent.is_dir():  # a table's name is no row of the working directory
        return []
    return [
        row
        for file in sorted(path.parent.glob("*.yaml"), key=natural_order)
        for row in _rows_in(file.absolute())
        if row.row == path.name
    ]


def _rows_in(file: Path) -> list[RowPlace]:
    """The rows that a file holds; what is wrong in it is told when one of them is loaded."""
    try:
        source = read_yaml(file)
        names = [row.name for row in grid_rows(source)] if "grid" in source.content else [file.stem]
    except SpecError:
        names = [file.stem]
    return [RowPlace(file, name) for name in names]


def _check_names(rows: Sequence[RowPlace]) -> None:
    files: dict[tuple[Path, str], Path] = {}
    for place in rows:
        other = files.setdefault((place.file.parent, place.row), place.file)
        if other != place.file:
            raise UserError(f"{shown(other)} and {shown(place.file)} both have a row {place.row}; rename one of them")


def _origin(source: SpecFile, row: str, overrides: Mapping[str, Any]) -> Origin:
    point = _point(source, row)
    base = [(name, source.place_of("base", str(index))) for index, name in enumerate(source.content.get("base") or [])]
    layers = [*_fragments([*base, *point.base]), source.layer("config"), *point.layers]
    layers += [Layer.at(f"--{key}", keys_of(key), value) for key, value in overrides.items()]
    origin = Origin(source.file, tuple(layers))
    config = origin.config()
    mistakes = [
        f"{origin.place_of((part,))}: no {part}.class_path; add it or a base fragment that has it"
        for part in ("model", "data")
        if not isinstance(config.get(part), dict) or "class_path" not in config[part]
    ]
    if mistakes:
        raise SpecError(mistakes)
    return origin


def _point(source: SpecFile, row: str) -> GridRow:
    if "grid" not in source.content:
        return GridRow(row, (), ())
    rows = {point.name: point for point in grid_rows(source)}
    if row not in rows:
        names = ", ".join(rows)
        raise SpecError(
            [f"{source.place_of('grid')}: this is a grid, and {row} is none of its rows, which are {names}"]
        )
    return rows[row]


def _fragments(names: Sequence[tuple[str, str]]) -> list[Layer]:
    layers: list[Layer] = []
    mistakes: list[str] = []
    for name, place in names:
        file = BASE / f"{name}.yaml"
        if not file.is_file():
            known = sorted(p.relative_to(BASE).with_suffix("").as_posix() for p in BASE.rglob("*.yaml"))
            hint = close_to(name, known, otherwise=f"there are {', '.join(known)}")
            mistakes.append(f"{place}: base: no fragment {name!r}; {hint}")
            continue
        try:
            layers.append(read_yaml(file).layer())
        except SpecError as error:
            mistakes += error.mistakes
    if mistakes:
        raise SpecError(mistakes)
    return layers


def _trained_row(source: SpecFile) -> RowPlace:
    """The row that `evaluate.run` names: in a table beside this one, or among those that come with the package."""
    name = source.content["evaluate"]["run"]
    tables = source.file.parent.parent
    rows = [row for row in (_rows_at(tables / name) or _rows_at(RUNS / name)) if row.name == name]
    if len(rows) != 1:
        near = [row.name for file in sorted(source.file.parent.glob("*.yaml")) for row in _rows_in(file)]
        hint = close_to(name, near, otherwise="expected TABLE/ROW of a run spec")
        raise SpecError([f"{source.place_of('evaluate', 'run')}: evaluate.run: there is no row {name}; {hint}"])
    return rows[0]


def _reference_of(source: SpecFile, row: str) -> dict[str, Any]:
    """The published number of a row; in a grid, `value` may hold those of several rows."""
    reference = dict(source.content.get("reference") or {})
    if isinstance(reference.get("value"), dict):
        return {**reference, "value": reference["value"][row]} if row in reference["value"] else {}
    return reference
