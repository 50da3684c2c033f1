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
    found = axes("MCIBIModule", context="ppm", slots=2, refinement=False, consistency_from_epoch=0, loss="rmi")
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


@pytest.mark.parametrize(
    ("context", "name"),
    [("none", "fcn"), ("ocr", "ocrnet"), ("upernet", "upernet"), ("upernet_aspp", "upernet")],
)
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
    config: dict[str, Any] = {
        "model": {"class_path": "a.Model", "init_args": {"optimizer": "adam", "lr": 0.1}},
        "data": {"class_path": "b"},
    }
    assert axes_of(config)["lr"] == 0.1
    config["model"]["init_args"] = {"optimizer": {"class_path": "a.Adam"}, "lr": 0.1}  # unused
    assert axes_of(config)["lr"] is None


def test_a_module_of_ones_own_with_a_memory_of_its_own_keeps_its_name() -> None:
    model = {"class_path": "a.OwnModule", "init_args": {"context": "ppm", "memory": "queue"}}
    assert axes_of({"model": model, "data": {"class_path": "b"}})["model"] == "own_pspnet"


def test_each_part_of_the_config_has_its_axes() -> None:
    parts: dict[str, dict[str, Any]] = {
        "model": {"encoder": "resnet50", "output_stride": 8, "atrous_rates": [1, 2, 3], "dropout": 0.3},
        "data": {"batch_size": 8, "crop_size": 64, "image_size": [48, 96]},
        "trainer": {"max_steps": 9, "max_epochs": 7, "precision": "bf16-mixed"},
    }
    evaluation = {"memory_rows": "exchanged", "tta": "flip", "window": "65 overlap=0.25", "postprocess": "crf:5"}
    config = {
        "model": {"class_path": "a.Model", "init_args": parts["model"]},
        "data": {"class_path": "b.ShapesDataModule", "init_args": parts["data"]},
        "trainer": parts["trainer"],
        "seed_everything": 3,
    }
    found = {axis: value for axis, value in axes_of(config, evaluation).items() if value is not None}
    expected = {**parts["model"], **parts["data"], **parts["trainer"], **evaluation}
    assert found == {"model": "model", "dataset": "shapes", **expected, "seed": 3}


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
    found = axes("DeepLabModule", loss=[{"name": "ce"}, {"name": "rmi", "weight": 0.25, "region_size": 5}])
    assert (found["loss"], found["region_size"], found["df"]) == ("ce + 0.25 rmi", 5, 4)
