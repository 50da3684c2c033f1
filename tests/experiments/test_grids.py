"""Grids: a product of axes in one file gives the rows that single files would give."""

import re
from pathlib import Path

import pytest
import yaml

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.specs import SpecError, find_specs, load_spec

FIXED = "base: [data/shapes, model/deeplabv3_resnet18, recipe/demo]\n"
GRID = (
    FIXED
    + """\
config: {model: {init_args: {loss: {name: rmi, region_size: 3}, lr: 0.5}}}
row: "{pooling}_df{df}"
grid:
  pooling: {model.loss.pooling: {int: interp, avg: avg}}
  df:
    model.loss.downsampling_factor:
      - 2
      - 4
reference:
  metric: test/mIoU
  source: somewhere
  value: {int_df4: 77.5, avg_df2: 79}
"""
)


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    file = tmp_path / "my_table" / "grid.yaml"
    file.parent.mkdir()
    file.write_text(GRID)
    return file


def test_a_grid_gives_what_single_files_would(grid: Path) -> None:
    places = find_specs([grid])
    assert [place.name for place in places] == [
        f"my_table/{row}" for row in ("int_df2", "int_df4", "avg_df2", "avg_df4")
    ]
    for place, (pooling, df) in zip(places, [("interp", 2), ("interp", 4), ("avg", 2), ("avg", 4)], strict=True):
        single = grid.with_name("single") / f"{place.row}.yaml"
        single.parent.mkdir(exist_ok=True)
        loss = {"name": "rmi", "region_size": 3, "pooling": pooling, "downsampling_factor": df}
        single.write_text(FIXED + yaml.safe_dump({"config": {"model": {"init_args": {"loss": loss, "lr": 0.5}}}}))
        assert load_spec(place).config == load_spec(single).config


def test_each_row_has_its_own_published_number(grid: Path) -> None:
    references = {place.row: load_spec(place).reference for place in find_specs([grid])}
    assert references["int_df4"] == {"metric": "test/mIoU", "source": "somewhere", "value": 77.5}
    assert references["avg_df2"]["value"] == 79
    assert references["int_df2"] == references["avg_df4"] == {}


def test_one_row_of_a_grid_is_found_by_folder_and_name(grid: Path) -> None:
    (place,) = find_specs([grid.parent / "avg_df2"])
    assert (place.file, place.row) == (grid, "avg_df2")
    assert len(find_specs([grid.parent / "avg_df2", grid.parent])) == 4
    with pytest.raises(UserError, match="no run spec or folder named .*avg_df3"):
        find_specs([grid.parent / "avg_df3"])
    with pytest.raises(
        SpecError, match=r"grid\.yaml:4: this is a grid, and grid is none of its rows, which are int_df2"
    ):
        load_spec(grid)


def test_overrides_win_over_a_grid_and_places_are_its_lines(grid: Path) -> None:
    place = find_specs([grid])[3]
    spec = load_spec(place, {"model.loss.pooling": "max"})
    assert spec.config["model"]["init_args"]["loss"]["pooling"] == "max"
    assert spec.origin.place_of(("model", "init_args", "loss", "downsampling_factor")) == f"{grid}:9"
    assert spec.origin.place_of(("model", "init_args", "loss", "pooling")) == "--model.loss.pooling"
    assert load_spec(place).origin.place_of(("model", "init_args", "loss", "pooling")) == f"{grid}:5"


def test_an_axis_may_change_several_keys_or_add_fragments(grid: Path) -> None:
    grid.write_text(
        """\
base: [data/shapes, recipe/demo]
row: "{network}_{speed}"
grid:
  network: {base: {v3: model/deeplabv3_resnet18, v3plus: [model/deeplabv3plus_resnet18]}}
  speed: {model: {slow: {lr: 0.001, warmup_iters: 7}, fast: {lr: 0.1}}}
"""
    )
    specs = {place.row: load_spec(place).config["model"]["init_args"] for place in find_specs([grid])}
    assert {row: (model["variant"], model["lr"], model["warmup_iters"]) for row, model in specs.items()} == {
        "v3_slow": ("v3", 0.001, 7),
        "v3_fast": ("v3", 0.1, 20),
        "v3plus_slow": ("v3plus", 0.001, 7),
        "v3plus_fast": ("v3plus", 0.1, 20),
    }


def test_values_are_named_as_in_yaml(grid: Path) -> None:
    grid.write_text(FIXED + 'row: "w{w}"\ngrid: {w: {model.encoder_weights: [null, true, 0.5, word]}}')
    assert [place.row for place in find_specs([grid])] == ["wnull", "wtrue", "w0.5", "wword"]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("grid: 3\nrow: a", [r":1: grid: expected axes, each {key: values}, got 3"]),
        (
            "grid:\n  df: {model.loss.downsampling_factor: [2]}",
            [r":1: row: a grid needs its rows' name, such as 'df{df}', got None"],
        ),
        (
            "row: '{dff}'\ngrid:\n  df: {model.loss.downsampling_factor: [2]}",
            [r":1: row: '{dff}' is not understood \(KeyError\('dff'\)\); the axes are df, so it could be 'df{df}'"],
        ),
        ("row: '{df'\ngrid:\n  df: {model.lr: [2]}", [r":1: row: '{df' is not understood"]),
        ("row: 'x'\ngrid:\n  df: {model.lr: [2, 3]}", [r":1: row: 'x' names two rows x; it needs {df}"]),
        ("row: 'a/{df}'\ngrid:\n  df: {model.lr: [2]}", [r":1: row: expected letters, .* got 'a/2'"]),
        (
            "row: '{a}{b}{c}{d}{e}'\ngrid:\n  a: {lr: [1]}\n  b: [1, 2]\n  c: {model.lr: []}\n"
            "  d: {model.lr: [[1, 2]]}\n  e: {model.lr: [1], model.momentum: [2]}",
            [
                r":3: grid\.a: unknown key lr; expected base, or one that starts with data, model or trainer",
                r":4: grid\.b: expected one {key: values}, got \[1, 2\]",
                r":5: grid\.c: expected a list of values or {label: value}, got \[\]",
                r":6: grid\.d: a list or a mapping as a value needs a name for the row: write {label: value}",
                r":7: grid\.e: expected one {key: values}",
            ],
        ),
        (
            "row: '{a}'\ngrid:\n  a: {base: {x: data/shapess}}",
            [r":3: base: no fragment 'data/shapess'; did you mean data/shapes"],
        ),
        (
            "row: '{a}'\ngrid:\n  a: {model.lr: [1]}\nreference:\n  value:\n    '1': x\n    '2': 5",
            [
                r":6: reference\.value\.1: expected a number, in percent, got 'x'",
                r":7: reference\.value: the grid has no row 2; its rows are 1",
            ],
        ),
    ],
)
def test_mistakes_in_a_grid_name_the_line(grid: Path, text: str, messages: list[str]) -> None:
    grid.write_text(text)
    with pytest.raises(SpecError) as told:
        load_spec(find_specs([grid])[0])
    assert len(told.value.mistakes) == len(messages), told.value.mistakes
    for mistake, message in zip(told.value.mistakes, messages, strict=True):
        assert re.search(rf"grid\.yaml{message}", mistake), mistake


def test_two_files_must_not_give_one_row(grid: Path) -> None:
    (grid.parent / "avg_df2.yaml").write_text(FIXED)
    with pytest.raises(UserError, match=r"avg_df2\.yaml and .*grid\.yaml both have a row avg_df2; rename one of them"):
        find_specs([grid.parent])
