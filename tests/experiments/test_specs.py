"""Run specs: what a diff resolves to, and what a mistake in one is told."""

import re
from pathlib import Path

import pytest
import yaml

from beyondpixel.experiments import specs
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.layers import shown
from beyondpixel.experiments.specs import RUNS, RowPlace, SpecError, find_specs, load_spec, merge, parse_overrides


def write(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


MODEL = {"class_path": "DeepLabModule", "init_args": {"lr": 0.1, "loss": {"name": "rmi", "region_size": 5}}}
DATA = {"class_path": "ShapesDataModule"}


def test_a_spec_is_named_by_its_path(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path / "my_table" / "my_row.yaml", {"config": {"model": MODEL, "data": DATA}}))
    assert (spec.table, spec.row, spec.name) == ("my_table", "my_row", "my_table/my_row")
    assert spec.reference == {}


def test_later_layers_win() -> None:
    fragments = [{"a": {"x": 1, "y": 2}, "list": [1, 2]}, {"a": {"y": 3}, "list": [9]}]
    assert merge(*fragments) == {"a": {"x": 1, "y": 3}, "list": [9]}


def test_another_class_drops_the_arguments_of_the_first() -> None:
    changed = merge({"model": MODEL}, {"model": {"class_path": "MCIBIModule", "init_args": {"lr": 0.2}}})
    assert changed["model"] == {"class_path": "MCIBIModule", "init_args": {"lr": 0.2}}


def test_merging_leaves_its_inputs_alone() -> None:
    base = {"model": {"init_args": {"lr": 0.1}}}
    merged = merge(base, {"model": {"init_args": {"lr": 0.2}}})
    merged["model"]["init_args"]["lr"] = 0.3
    assert base == {"model": {"init_args": {"lr": 0.1}}}


def test_overrides_reach_the_init_args(tmp_path: Path) -> None:
    file = write(tmp_path / "t" / "r.yaml", {"config": {"model": MODEL, "data": DATA, "trainer": {"max_steps": 9}}})
    overrides = parse_overrides(["--data.root", "/x", "--model.loss={name: bce}", "--trainer.max_steps", "3"])
    config = load_spec(file, overrides).config
    assert config["data"]["init_args"]["root"] == "/x"
    assert config["model"]["init_args"] == {"lr": 0.1, "loss": {"name": "bce"}}
    assert config["trainer"]["max_steps"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "1"], "unknown argument --lr: config keys are given as --data.KEY"),
        (["stray"], "unknown argument stray"),
        (["--data.root"], "--data.root has no value: expected --data.root VALUE"),
        (["--data.root", "--trainer.max_steps=1"], "--data.root has no value"),
    ],
)
def test_wrong_overrides(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_overrides(words)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("base: [demo]\nconfg: {}\n", [r"row\.yaml:2: unknown key confg; did you mean config\?"]),
        (
            "# a\n\nscore: 1",
            [r"row\.yaml:3: unknown key score; valid keys are base, config, reference, evaluate, grid, row"],
        ),
        (
            "base:\n  - data/shapes\n  - recipe/demoo\n  - nowhere",
            [
                r"row\.yaml:3: base: no fragment 'recipe/demoo'; did you mean recipe/demo",
                r"row\.yaml:4: base: no fragment 'nowhere'; there are .*data/camvid_small",
            ],
        ),
        ("config:\n  model: {class_path: A}", [r"row\.yaml: no data\.class_path; add it or a base fragment"]),
        ("base: data/shapes", [r"row\.yaml:1: base: expected a list of fragments, got 'data/shapes'"]),
        ("config: 3", [r"row\.yaml:1: config: expected keys and values, got 3"]),
        ("config:\n  trainr: {}", [r"row\.yaml:2: config: unknown key trainr; did you mean trainer\?"]),
        (
            "reference:\n  score: 1\n  value: high\n  per_class: {car: x}",
            [
                r"row\.yaml:2: reference: unknown key score; did you mean source",
                r"row\.yaml:3: reference\.value: expected a number, in percent, got 'high'",
                r"row\.yaml:4: reference\.per_class: expected class names with a number each, .* got {'car': 'x'}",
            ],
        ),
        ("reference:\n  source: there", [r"row\.yaml:1: reference: expected value, a number, in percent"]),
        ("a: 1\nb: [1", [r"row\.yaml:2: no valid YAML: while parsing a flow sequence, expected ',' or ']'"]),
        ("base: []\nconfig: {}\nbase: [x]", [r"row\.yaml:3: base stands here a second time; keep one"]),
        ("config:\n  model:\n    a: 1\n    a: 2", [r"row\.yaml:4: a stands here a second time"]),
        ("- 1", [r"row\.yaml:1: expected a mapping at its top, got list"]),
        ("row: x", [r"row\.yaml:1: row: names the rows of a grid"]),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, text: str, messages: list[str]) -> None:
    file = write(tmp_path / "t" / "row.yaml", text)
    with pytest.raises(SpecError) as told:
        load_spec(file)
    assert len(told.value.mistakes) == len(messages)
    for mistake, message in zip(told.value.mistakes, messages, strict=True):
        assert re.search(f"(?s)^[^ ]*{message}", mistake), mistake


def test_a_wrong_fragment_is_told_by_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "base" / "broken.yaml", "model:\n  a: 1\n  a: 2\n")
    monkeypatch.setattr(specs, "BASE", tmp_path / "base")
    file = write(tmp_path / "t" / "row.yaml", "base: [broken]")
    with pytest.raises(SpecError, match=r"base/broken\.yaml:3: a stands here a second time"):
        load_spec(file)


def test_numbers_are_read_as_in_yaml_1_2(tmp_path: Path) -> None:
    text = yaml.safe_dump({"config": {"model": MODEL, "data": DATA}}) + "reference: {value: 1e-4}"
    assert load_spec(write(tmp_path / "t" / "row.yaml", text)).reference == {"value": 0.0001}
    assert parse_overrides(["--model.lr=1e-3"]) == {"model.lr": 0.001}


def test_specs_are_found_by_file_folder_and_name(tmp_path: Path) -> None:
    a, b = (write(tmp_path / "t" / f"{name}.yaml", {}) for name in "ab")
    assert find_specs([a]) == [RowPlace(a, "a")]
    assert find_specs([tmp_path, a]) == [RowPlace(a, "a"), RowPlace(b, "b")]
    assert find_specs(["camvid_small/rmi"]) == [RowPlace(RUNS / "camvid_small" / "rmi.yaml", "rmi")]
    assert [place.row for place in find_specs(["demo"])] == ["bce", "ce", "rmi"]


def test_every_key_is_told_where_it_was_given_last(tmp_path: Path) -> None:
    text = "base: [data/shapes, model/deeplabv3_resnet18]\nconfig:\n  model:\n    init_args:\n      encoder: resnet34\n"
    file = write(tmp_path / "t" / "row.yaml", text)
    origin = load_spec(file, {"trainer.max_steps": 5, "model.loss": {"name": "rmi", "pooling": "max"}}).origin
    fragment = shown(RUNS.parent / "base" / "model" / "deeplabv3_resnet18.yaml")
    assert origin.place_of(("model", "init_args", "encoder")) == f"{file}:5"
    assert origin.place_of(("model", "init_args", "variant")) == f"{fragment}:5"
    assert origin.place_of(("model", "init_args", "loss", "pooling")) == "--model.loss"
    assert origin.place_of(("trainer", "max_steps")) == "--trainer.max_steps"
    assert origin.place_of(("model", "init_args", "never_given")) == f"{file}:4"


def test_an_unknown_name_gets_the_closest_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run spec or folder named camvid_smal; did you mean .*camvid_small"):
        find_specs(["camvid_smal"])
    with pytest.raises(UserError, match=r"no run spec in .*: expected files that end in \.yaml"):
        find_specs([tmp_path])


TRAINED = "base: [data/shapes, model/deeplabv3_resnet18]\n"


def test_a_row_that_evaluates_has_the_config_of_the_trained_one(tmp_path: Path) -> None:
    write(tmp_path / "t" / "ce.yaml", TRAINED)
    text = 'evaluate: {run: t/ce, postprocess: "crf:5"}\nreference: {value: 78.4}\n'
    spec = load_spec(write(tmp_path / "t" / "crf.yaml", text), {"trainer.max_steps": 7})
    trained = load_spec(tmp_path / "t" / "ce.yaml", {"trainer.max_steps": 7})
    assert (spec.name, spec.evaluate) == ("t/crf", {"run": "t/ce", "postprocess": "crf:5"})
    assert spec.config == trained.config
    assert (spec.reference, trained.reference, trained.evaluate) == ({"value": 78.4}, {}, None)
    views = write(tmp_path / "t" / "views.yaml", "evaluate: {run: t/ce, tta: flip, window: 513, overlap: 0.5}")
    assert load_spec(views).evaluate == {"run": "t/ce", "tta": "flip", "window": 513, "overlap": 0.5}


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("evaluate: crf", [r":1: evaluate: expected {run: TABLE/ROW, postprocess: crf:5}, got 'crf'"]),
        ("evaluate: {run: t/ce}", [r":1: evaluate: expected what to do beside run, such as postprocess: crf:5"]),
        ("evaluate: {postprocess: crf:5}", [r":1: evaluate\.run: expected text such as rmi_.*, got nothing"]),
        (
            "evaluate:\n  run: t/ce\n  window: wide\n  tta: true",
            [
                r":4: evaluate\.tta: expected text such as flip, got True",
                r":3: evaluate\.window: expected the side of a sliding window in pixels, got 'wide'",
            ],
        ),
        (
            "base: [data/shapes]\nevaluate:\n  run: 3\n  postproces: a",
            [
                r":1: base: a row that evaluates has all this from evaluate\.run; take it out",
                r":4: evaluate: unknown key postproces; did you mean postprocess\?",
                r":3: evaluate\.run: expected text such as rmi_table1_voc/v3_ce, got 3",
            ],
        ),
        (
            "evaluate:\n  run: t/cee\n  postprocess: crf:5",
            [r":2: evaluate\.run: there is no row t/cee; did you mean t/ce"],
        ),
        (
            "evaluate:\n  run: t/again\n  postprocess: crf:5",
            [r":2: evaluate\.run: t/again trains nothing itself; name the row that it tests"],
        ),
    ],
)
def test_mistakes_of_a_row_that_evaluates(tmp_path: Path, text: str, messages: list[str]) -> None:
    write(tmp_path / "t" / "ce.yaml", TRAINED)
    write(tmp_path / "t" / "again.yaml", "evaluate: {run: t/ce, postprocess: crf:1}")
    with pytest.raises(SpecError) as told:
        load_spec(write(tmp_path / "t" / "row.yaml", text))
    assert len(told.value.mistakes) == len(messages)
    for mistake, message in zip(told.value.mistakes, messages, strict=True):
        assert re.search(rf"row\.yaml{message}", mistake), mistake
