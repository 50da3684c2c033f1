"""MCIBI's run specs: each row is what its name says, and differs in nothing else."""

from typing import Any

import pytest

from beyondpixel.experiments.axes import NETWORKS, RMI_AXES, axes_of
from beyondpixel.experiments.specs import RUNS, load_spec

CHANGES: dict[str, dict[str, Any]] = {
    "mcibi": {},
    "update_mean": {"update_strategy": "mean"},
    "no_refinement": {"refinement": False},
    "consistency": {"consistency": True},
    "slots_2": {"slots": 2},
    "slots_4": {"slots": 4},
    "random_pixel": {"initialization": "random_pixel"},
    "momentum_lr": {"momentum_rule": "lr", "memory_momentum": 1.0},
    "momentum_constant": {"momentum_rule": "constant", "memory_momentum": 0.1},
    "hard": {"aggregation": "hard"},
}


def axes(table: str, row: str) -> dict[str, Any]:
    return axes_of(load_spec(RUNS / table / f"{row}.yaml").config)


def rows(table: str) -> set[str]:
    return {file.stem for file in (RUNS / table).glob("*.yaml")}


@pytest.mark.parametrize("data", ["voc", "camvid"])
def test_contexts_are_named(data: str) -> None:
    table = f"mcibi_contexts_{data}"
    methods = {"": (None, ""), "_mcibi": ("features", "mcibi_"), "_mcibipp": ("statistics", "mcibi++_")}
    assert rows(table) == {network + method for network in NETWORKS.values() for method in methods}
    for context, network in NETWORKS.items():
        for suffix, (memory, prefix) in methods.items():
            found = axes(table, network + suffix)
            assert (found["context"], found["memory"], found["model"]) == (context, memory, prefix + network)
            assert (found["loss"], found["dataset"]) == ("ce", data)
            assert found["momentum_rule"] == {None: None, "features": "poly", "statistics": "constant"}[memory]


@pytest.mark.parametrize("data", ["voc", "camvid"])
def test_ablations_change_one_thing(data: str) -> None:
    table = f"mcibi_ablation_{data}"
    assert rows(table) == {*CHANGES, "rmi", "no_memory", "no_memory_rmi"}
    base = axes(table, "mcibi")
    for row, change in CHANGES.items():
        assert axes(table, row) == {**base, **change}
    other_loss, other_model = axes(table, "rmi"), axes(table, "no_memory_rmi")
    of_the_loss = {axis: other_model[axis] for axis in ("loss", *RMI_AXES)}
    assert of_the_loss["loss"] == "rmi"
    assert other_loss == {**base, **of_the_loss}
    assert axes(table, "no_memory")["memory"] is axes(table, "no_memory_rmi")["memory"] is None


@pytest.mark.parametrize("row", ["mcibi_aspp_ce", "mcibi_aspp_rmi"])
def test_small_rows_differ_from_deeplabs_in_the_model_alone(row: str) -> None:
    ours = load_spec(RUNS / "mcibi_camvid_small" / f"{row}.yaml").config
    theirs = load_spec(RUNS / "mcibi_camvid_small" / f"deeplabv3_{row.rpartition('_')[2]}.yaml").config
    assert {**ours, "model": None} == {**theirs, "model": None}
    shared_keys = set(ours["model"]["init_args"]) & set(theirs["model"]["init_args"])
    assert {"loss", "lr", "encoder", "output_stride", "weight_decay", "warmup_iters"} <= shared_keys
    for key in shared_keys:
        assert ours["model"]["init_args"][key] == theirs["model"]["init_args"][key]
