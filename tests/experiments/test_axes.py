"""Axes of a run: flat, and null where they do not apply."""

from typing import Any

import pytest

from beyondpixel.experiments.axes import AXES, METHOD_AXES, axes_of
from beyondpixel.experiments.resolve import complete

ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 6e-5}}
OF_A_MEMORY = (
    "refinement",
    "momentum_rule",
    "memory_momentum",
    "update_strategy",
    "slots",
    "initialization",
    "aggregation",
    "consistency",
)


def axes(name: str, **arguments: Any) -> dict[str, Any]:
    model = {"class_path": f"beyondpixel.lightning_modules.{name}", "init_args": arguments}
    values, errors = complete({"model": model})
    assert errors == []
    return axes_of(values)


def test_features() -> None:
    found = axes("MCIBIModule", context="ppm", slots=2, refinement=False, consistency_from_epoch=1, loss="rmi")
    assert (found["model"], found["memory"], found["context"], found["loss"]) == (
        "mcibi_pspnet",
        "features",
        "ppm",
        "rmi",
    )
    assert {axis: found[axis] for axis in OF_A_MEMORY} == {
        "refinement": False,
        "momentum_rule": "poly",
        "memory_momentum": 0.9,
        "update_strategy": "cosine",
        "slots": 2,
        "initialization": "mean",
        "aggregation": "soft",
        "consistency": True,
    }
    assert axes("MCIBIModule")["consistency"] is False


def test_statistics() -> None:
    found = axes("MCIBIModule", memory="statistics", memory_momentum_rule="constant")
    assert (found["model"], found["memory"]) == ("mcibi++_deeplabv3", "statistics")
    applying = {axis for axis in OF_A_MEMORY if found[axis] is not None}
    assert applying == {"refinement", "momentum_rule", "memory_momentum", "aggregation"}


@pytest.mark.parametrize(("context", "name"), [("none", "fcn"), ("ocr", "ocrnet"), ("upernet", "upernet")])
def test_without_a_memory_it_is_the_plain_network(context: str, name: str) -> None:
    found = axes("MCIBIModule", memory=None, context=context)
    assert (found["model"], found["memory"], found["context"]) == (name, None, context)
    assert all(found[axis] is None for axis in OF_A_MEMORY)


def test_other_models_have_none_of_them() -> None:
    found = axes("DeepLabModule", variant="v3")
    assert found["model"] == "deeplab_v3"
    assert all(found[axis] is None for axis in ("memory", "context", *OF_A_MEMORY))


def test_the_learning_rate_is_that_of_the_optimizer_that_runs() -> None:
    own, other = axes("DeepLabModule", lr=0.02), axes("DeepLabModule", lr=0.02, optimizer=ADAMW)
    assert (own["optimizer"], own["lr"]) == (None, 0.02)
    assert (other["optimizer"], other["lr"]) == ("adamw", 6e-5)


def test_a_module_may_call_something_else_its_optimizer() -> None:
    config = {
        "model": {"class_path": "a.Model", "init_args": {"optimizer": "adam", "lr": 0.1}},
        "data": {"class_path": "b"},
    }
    assert axes_of(config)["lr"] == 0.1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("DeepLabModule", {"variant": "v3", "loss": "rmi"}),
        ("DeepLabModule", {"optimizer": ADAMW}),
        ("MCIBIModule", {"memory": None}),
        ("MCIBIModule", {"memory": "statistics", "memory_momentum_rule": "constant"}),
    ],
)
def test_every_run_has_the_same_axes_in_the_same_order(name: str, arguments: dict[str, Any]) -> None:
    assert tuple(axes(name, **arguments)) == AXES
    assert set(AXES) > METHOD_AXES


def test_every_argument_of_rmi_has_its_axis() -> None:
    arguments = {
        "pooling": "max",
        "downsampling_factor": 3,
        "region_size": 5,
        "pixel_weight": 0.25,
        "pixel_loss": "ce",
        "covariance": "mean",
        "ridge": 1e-6,
        "absent_classes": "skip",
    }
    found = axes("DeepLabModule", loss={"name": "rmi", **arguments}, lr=0.02, dropout=0.3)
    df = arguments.pop("downsampling_factor")
    assert {axis: found[axis] for axis in arguments} == arguments
    assert (found["df"], found["lr"], found["dropout"], found["seed"]) == (df, 0.02, 0.3, 1)


def test_a_sum_of_losses_is_named_by_its_parts() -> None:
    found = axes("DeepLabModule", loss=[{"name": "ce"}, {"name": "rmi", "weight": 0.5, "region_size": 5}])
    assert (found["loss"], found["region_size"], found["df"]) == ("ce + 0.5 rmi", 5, 4)
