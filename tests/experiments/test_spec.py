"""Run specs: how sources merge, what rows a grid makes, what is said of a wrong file."""

import math
import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from beyondpixel.experiments import spec
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.grid import expand_grid
from beyondpixel.experiments.merge import MergedConfig
from beyondpixel.experiments.resolve import resolve
from beyondpixel.experiments.spec import RunSpec, SpecError, load_specs, parse_overrides
from beyondpixel.experiments.yaml_files import read_value

MODEL = {"class_path": "DeepLabModule", "init_args": {"lr": 0.1, "loss": {"name": "rmi", "region_size": 5}}}
DATA = {"class_path": "ShapesDataModule"}


def write(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def load_one(file: Path, overrides: dict[str, object] | None = None) -> RunSpec:
    (found,) = load_specs([file], overrides)
    return found


def merged(*sources: dict[str, object]) -> dict[str, object]:
    config = MergedConfig()
    for index, source in enumerate(sources):
        config.add(source, source=str(index))
    return config.values


def test_a_spec_is_named_by_its_path(tmp_path: Path) -> None:
    found = load_one(write(tmp_path / "my_table" / "my_row.yaml", {"config": {"model": MODEL, "data": DATA}}))
    assert (found.table, found.row, found.name) == ("my_table", "my_row", "my_table/my_row")
    assert (found.reference, found.evaluations) == ({}, ())


def test_later_sources_win() -> None:
    assert merged({"a": {"x": 1, "y": 2}, "list": [1, 2]}, {"a": {"y": 3}, "list": [9]}) == {
        "a": {"x": 1, "y": 3},
        "list": [9],
    }
    assert merged({"a": {"x": 1}}, {"a": {}}) == {"a": {"x": 1}}
    assert merged({"loss": "ce"}, {"loss": {"name": "rmi"}}) == {"loss": {"name": "rmi"}}
    assert merged({"loss": "rmi"}, {"loss": {"region_size": 5}}) == {"loss": {"name": "rmi", "region_size": 5}}


@pytest.mark.parametrize(
    ("below", "above", "result"),
    [
        ({"model": MODEL}, {"model": {"class_path": "Other", "init_args": {"lr": 0.2}}}, {"lr": 0.2}),
        ({"model": MODEL}, {"model": {"init_args": {"loss": {"name": "ce"}}}}, {"lr": 0.1, "loss": {"name": "ce"}}),
        # a class by its full and by its short name is the same class; one of another package is not
        (
            {"model": {"class_path": "beyondpixel.m.Module", "init_args": {"a": 1}}},
            {"model": {"class_path": "Module", "init_args": {"b": 2}}},
            {"a": 1, "b": 2},
        ),
        (
            {"model": {"class_path": "Module", "init_args": {"a": 1}}},
            {"model": {"class_path": "theirs.Module", "init_args": {"b": 2}}},
            {"b": 2},
        ),
    ],
)
def test_another_class_or_loss_drops_the_arguments_of_the_first(
    below: dict[str, object], above: dict[str, object], result: dict[str, object]
) -> None:
    config = MergedConfig()
    config.add(below, source="below")
    config.add(above, source="above")
    assert config.values["model"]["init_args"] == result
    region = ("model", "init_args", "loss", "region_size")
    assert region not in config.sources


def test_arguments_of_a_loss_that_is_given_by_name() -> None:
    """`launch demo/ce --model.loss rmi --model.loss.region_size 5`; each value keeps its source."""
    words = ["--model.loss", "rmi", "--model.loss.region_size", "5"]
    (found,) = load_specs(["demo/ce"], parse_overrides(words)[0])
    loss = resolve(found)["model"]["init_args"]["loss"]
    assert (loss["name"], loss["region_size"], loss["pooling"]) == ("rmi", 5, "avg")
    (found,) = load_specs(["demo/bce"], parse_overrides(["--model.loss.backend", "eager"])[0])
    name = ("model", "init_args", "loss", "name")
    assert (found.merged.sources[name], found.merged.sources[(*name[:-1], "backend")]) == ("row", "command line")


@pytest.mark.parametrize(
    ("words", "optimizer"),
    [
        ("--model.optimizer AdamW", {"class_path": "AdamW", "init_args": {"lr": 8e-3}}),  # the row's own
        ("--model.optimizer.lr 1e-3", {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}),
        ("--model.optimizer Adam --model.optimizer.lr 1e-4", {"class_path": "Adam", "init_args": {"lr": 1e-4}}),
        ("--model.optimizer.init_args.lr=1e-4", {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}}),
        ("--model.optimizer.class_path theirs.AdamW", {"class_path": "theirs.AdamW"}),
        ("--model.optimizer null", None),
    ],
)
def test_an_optimizer_is_chosen_on_the_command_line_as_for_fit(
    tmp_path: Path, words: str, optimizer: dict[str, object] | None
) -> None:
    own = {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 8e-3}}}
    model = {"class_path": "beyondpixel.lightning_modules.DeepLabModule", "init_args": own}
    file = write(tmp_path / "t" / "r.yaml", {"config": {"model": model, "data": DATA}})
    found = load_one(file, parse_overrides(words.split())[0])
    assert found.config["model"]["init_args"]["optimizer"] == optimizer


def test_merging_leaves_its_inputs_alone() -> None:
    base = {"list": [1], "model": {"init_args": {"lr": 0.1}}}
    config = MergedConfig()
    config.add(base, source="base")
    config.values["model"]["init_args"]["lr"] = 0.3
    config.values["list"].append(2)
    assert base == {"list": [1], "model": {"init_args": {"lr": 0.1}}}


def test_each_value_knows_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "BASE", tmp_path / "base")
    write(tmp_path / "base" / "part.yaml", {"trainer": {"max_steps": 2, "devices": 1}})
    content = {"base": ["part"], "config": {"model": MODEL, "data": DATA, "trainer": {"max_steps": 9}}}
    file = write(tmp_path / "t" / "r.yaml", content)
    found = load_one(file, parse_overrides(["--data.root", "/x", "--model.loss={name: bce}"])[0])
    assert found.config["model"]["init_args"] == {"lr": 0.1, "loss": {"name": "bce"}}
    sources = {keys[-1]: source for keys, source in found.merged.sources.items()}
    assert sources == {
        "class_path": "row",
        "lr": "row",
        "name": "command line",
        "root": "command line",
        "max_steps": "row",
        "devices": "base/part",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lr", "1"], "unknown argument --optim.lr: config keys are given as --data.KEY"),
        (["--data.root"], "--data.root has no value: expected --data.root VALUE"),
        (["--data.root", "--trainer.max_steps=1"], "--data.root has no value"),
        (["--data.root", "[1"], "not a valid YAML value"),
    ],
)
def test_wrong_overrides(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse_overrides(words)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("base: [demo]\nconfg: {}\n", ["confg: unknown key; did you mean config?"]),
        ("score: 1", ["score: unknown key; expected one of base, config, reference, evaluations, grid, row"]),
        ("base: data/shapes", ["base: expected a list of fragments, got 'data/shapes'"]),
        ("evaluations: crf:5", ["evaluations: expected a list of inferers such as crf:5, got 'crf:5'"]),
        ("config: 3", ["config: expected keys and values, got 3"]),
        (
            "config: {modell: 3, data: 1}",
            ["config.modell: unknown key; did you mean model", "config.data: expected keys"],
        ),
        (
            "base: [recipe/demoo]\nconfig: {model: {class_path: A}, data: {class_path: B}}",
            ["base: no fragment 'recipe/demoo'; did you mean recipe/demo"],
        ),
        ("base: [recipe/demo]", ["model.class_path: not given", "data.class_path: not given"]),
        ("reference: {metric: test/mIoU}", ["reference.value: not given; expected a number, in percent"]),
        ("reference: {value: high}", ["reference.value: expected a number, in percent, got 'high'"]),
        ("reference: {valu: 1}", ["reference.valu: unknown key; did you mean value?", "reference.value: not given"]),
        (
            'reference: {evaluations: {"crf:5": {value: x}}}',
            ["reference.evaluations.crf:5.value: expected a number, in percent, got 'x'"],
        ),
        ("row: x", ["row: expected only with grid; remove it, since the file's name is the row's name"]),
        ("a: 1\na: 2", ["not valid YAML in line 2: the key a is given twice; keep one"]),
        ("a: [1", ["not valid YAML in line "]),
        ("- 1", ["expected a mapping, got list"]),
    ],
)
def test_what_is_wrong_in_a_file(tmp_path: Path, text: str, messages: list[str]) -> None:
    file = write(tmp_path / "t" / "row.yaml", text)
    with pytest.raises(SpecError) as told:
        load_specs([file])
    assert len(told.value.errors) == len(messages), told.value.errors
    for error, message in zip(told.value.errors, messages, strict=True):
        assert error.startswith(f"{file}: {message}")


def test_errors_of_all_files_come_together(tmp_path: Path) -> None:
    write(tmp_path / "t" / "a.yaml", "score: 1")
    write(tmp_path / "t" / "b.yaml", "- 1")
    with pytest.raises(SpecError) as told:
        load_specs([tmp_path / "t"])
    assert len(told.value.errors) == 2


def test_places(tmp_path: Path) -> None:
    content = {"config": {"model": MODEL, "data": DATA}}
    write(tmp_path / "t" / "a.yaml", content)
    write(tmp_path / "t" / "g.yaml", {**content, "row": "r{r}", "grid": {"r": {"model.lr": [1, 2]}}})
    assert [found.row for found in load_specs([tmp_path / "t"])] == ["a", "r1", "r2"]
    assert [found.row for found in load_specs([tmp_path / "t" / "r2", tmp_path / "t" / "a"])] == ["r2", "a"]
    assert [found.name for found in load_specs(["rmi_table3a/avg_df2"])] == ["rmi_table3a/avg_df2"]
    with pytest.raises(UserError, match="no row r3 in .*; expected one of "):
        load_specs([tmp_path / "t" / "r3"])
    with pytest.raises(UserError, match="no run spec or folder named camvid_smal; did you mean camvid_small"):
        load_specs(["camvid_smal"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run spec in .*empty: expected files that end in .yaml"):
        load_specs([tmp_path / "empty"])


def test_tables_of_one_name_do_not_share_a_run_folder(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "t" / "r.yaml", {"config": {"model": MODEL, "data": DATA}})
    with pytest.raises(
        UserError, match=r"a/t/r\.yaml and .*b/t/r\.yaml both have the row t/r, and so the same run fol"
    ):
        load_specs([tmp_path / "a" / "t", tmp_path / "b" / "t"])
    assert len(load_specs([tmp_path / "a" / "t", tmp_path / "a" / "t" / "r.yaml"])) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4:00:00", "4:00:00"),
        ("on", "on"),
        ("No", "No"),
        ("2026-11-29", "2026-11-29"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("true", True),
        ("-3", -3),
        ("0x1F", 31),
        ("1e-4", 1e-4),
        ("1.", 1.0),
        (".5E+2", 50.0),
        ("-.inf", -math.inf),
        ("~", None),
        ("", None),
        ("null", None),
        ("{a: &x {b: 1}, c: {<<: *x}}", {"a": {"b": 1}, "c": {"b": 1}}),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = read_value(text)
    assert read == value
    assert type(read) is type(value)


def test_two_files_with_a_row_of_one_name(tmp_path: Path) -> None:
    content = {"config": {"model": MODEL, "data": DATA}}
    write(tmp_path / "t" / "r1.yaml", content)
    write(tmp_path / "t" / "g.yaml", {**content, "row": "r{r}", "grid": {"r": {"model.lr": [1]}}})
    with pytest.raises(UserError, match="both have the row t/r1, and so the same run folder; rename one"):
        load_specs([tmp_path / "t"])


def test_a_grid_is_a_product(tmp_path: Path) -> None:
    grid = {
        "pooling": {"model.loss.pooling": {"avg": "avg", "int": "interp"}},
        "df": {"model.loss.downsampling_factor": [2, 4]},
    }
    rows = expand_grid(grid, "{pooling}_df{df}")
    assert list(rows) == ["avg_df2", "avg_df4", "int_df2", "int_df4"]
    assert rows["int_df2"] == [("model.loss.pooling", "interp"), ("model.loss.downsampling_factor", 2)]


def test_a_grid_adds_fragments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "BASE", tmp_path / "base")
    for name in ("p", "q"):
        write(tmp_path / "base" / f"{name}.yaml", {"trainer": {f"{name}_steps": 1}})
    grid = {"b": {"base": {"both": ["p", "q"], "one": "q"}}, "lr": {"model.lr": [0.5]}}
    content = {"config": {"model": MODEL, "data": DATA}, "row": "{b}_{lr}", "grid": grid}
    both, one = load_specs([write(tmp_path / "t" / "g.yaml", content)])
    assert (both.row, both.config["trainer"]) == ("both_0.5", {"p_steps": 1, "q_steps": 1})
    assert (one.row, one.config["trainer"], one.config["model"]["init_args"]["lr"]) == ("one_0.5", {"q_steps": 1}, 0.5)


@pytest.mark.parametrize(
    ("grid", "template", "message"),
    [
        ([], "x", "grid: expected axes, each {key: values}, got []"),
        ({"a b": {"model.lr": [1]}}, "x", "grid.a b: expected a name of letters, digits and _"),
        ({"a": {"model.lr": [1], "model.x": [1]}}, "{a}", "grid.a: expected one {key: values}"),
        ({"a": {"optim.lr": [1]}}, "{a}", "grid.a: unknown key optim.lr; expected base, or one"),
        ({"a": {"model.lr": []}}, "{a}", "grid.a: expected a list of values or {label: value}, got []"),
        ({"a": {"model.lr": [[1]]}}, "{a}", "grid.a: a list or a mapping as a value needs a name"),
        ({"a": {"model.lr": [1]}}, None, "row: a grid needs a name for its rows, such as 'a{a}', got None"),
        ({"a": {"model.lr": [1]}}, "{b}", "row: '{b}' is not understood"),
        ({"a": {"model.lr": [1]}}, "{a:>99999999999}", "row: '{a:>99999999999}' is not understood"),
        ({"a": {"model.lr": [1]}}, "{a.b}", "row: '{a.b}' is not understood"),
        ({"a": {"model.lr": [1]}}, "a" * 300 + "{a}", "200 bytes at most"),
        ({"a": {"model.lr": [1, 2]}}, "x", "row: 'x' names two rows x; it needs {a}"),
        ({"a": {"model.lr": {"a/b": 1}}}, "{a}", "row: expected letters, digits, and . _ -"),
        ({"a": {"model.lr": {"..": 1}}}, "{a}", "row: expected letters, digits, and . _ -"),
        ({"a": {"base": {"b": {"c": 1}}}}, "{a}", "grid.a: expected names of fragments"),
        ({"a": {"base": [3]}}, "{a}", "grid.a: expected names of fragments"),
    ],
)
def test_wrong_grids(grid: object, template: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        expand_grid(grid, template)


def test_published_values_of_a_grid_go_to_their_rows(tmp_path: Path) -> None:
    content = {
        "config": {"model": MODEL, "data": DATA},
        "row": "r{r}",
        "grid": {"r": {"model.lr": [1, 2]}},
        "reference": {"metric": "test/mIoU", "value": {"r1": 50.5}, "deviations": "half the size"},
    }
    file = write(tmp_path / "t" / "g.yaml", content)
    first, second = load_specs([file])
    assert (first.reference["value"], first.reference["deviations"], second.reference) == (50.5, "half the size", {})
    write(file, {**content, "reference": {"value": {"r1": "high"}}})
    with pytest.raises(SpecError, match="reference.value: expected a number, in percent, got 'high'"):
        load_specs([file])
    write(file, {**content, "reference": {"value": {"r7": 1}}})
    with pytest.raises(SpecError, match="reference.value.r7: no such row; expected one of "):
        load_specs([file])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux's /proc has folders that cannot be listed")
def test_a_folder_that_cannot_be_listed_is_one_sentence() -> None:
    with subprocess.Popen(["true"]) as process:
        status = Path(f"/proc/{process.pid}/status")
        while "Z (zombie)" not in status.read_text():
            time.sleep(0.01)
        with pytest.raises(UserError, match=r"/task: cannot be searched for run specs: .*Invalid argument"):
            load_specs([f"/proc/{process.pid}/task"])
