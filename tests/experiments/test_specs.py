"""Run specs: what a diff resolves to, and what a mistake in one is told."""

from pathlib import Path

import pytest
import yaml

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.specs import RUNS, find_specs, load_spec, merge, parse_overrides


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
    ("content", "message"),
    [
        ({"confg": {}}, r"row\.yaml: unknown key confg; valid keys are base, config, reference"),
        (
            {"base": ["nowhere"]},
            r"row\.yaml: base names the fragment 'nowhere', but there are only: .*data/camvid_small",
        ),
        ({"config": {"model": MODEL}}, r"row\.yaml: no data\.class_path"),
        ({"reference": {"score": 1}}, r"row\.yaml: reference: unknown key score; valid keys are metric, value, source"),
        ("a: [1", r"row\.yaml is no valid YAML: .*line 1"),
        ("- 1", r"row\.yaml: expected a mapping at its top, got list"),
    ],
)
def test_mistakes_name_the_file(tmp_path: Path, content: object, message: str) -> None:
    file = write(tmp_path / "t" / "row.yaml", content)
    with pytest.raises(UserError, match=f"(?s){message}"):
        load_spec(file)


def test_specs_are_found_by_file_folder_and_name(tmp_path: Path) -> None:
    a, b = (write(tmp_path / "t" / f"{name}.yaml", {}) for name in "ab")
    assert find_specs([a]) == [a]
    assert find_specs([tmp_path, a]) == [a, b]
    assert find_specs(["camvid_small/rmi"]) == [RUNS / "camvid_small" / "rmi.yaml"]
    assert [file.stem for file in find_specs(["camvid_small"])] == ["bce", "ce", "rmi"]


def test_an_unknown_name_gets_the_closest_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run spec or folder named camvid_smal; did you mean .*camvid_small"):
        find_specs(["camvid_smal"])
    with pytest.raises(UserError, match=r"no run spec in .*: expected files that end in \.yaml"):
        find_specs([tmp_path])
