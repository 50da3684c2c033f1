"""Flat ablation axes of a resolved config: every run has all of them, null where one does not apply.

W&B groups and filters by them. Every run has the keys of every method (such as RMI's `region_size`), so that runs of
different methods fit in one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RMI_AXES = {
    "pooling": "pooling",
    "df": "downsampling_factor",
    "region_size": "region_size",
    "pixel_weight": "pixel_weight",
    "pixel_loss": "pixel_loss",
    "covariance": "covariance",
    "ridge": "ridge",
    "absent_classes": "absent_classes",
}
# of a memory of representations (MCIBI); a memory of statistics (MCIBI++) has only `STATISTICS_AXES`
MEMORY_AXES = {
    "refinement": "refinement",
    "momentum_rule": "memory_momentum_rule",
    "memory_momentum": "memory_momentum",
    "update_strategy": "update_strategy",
    "slots": "slots",
    "initialization": "initialization",
    "aggregation": "aggregation",
}
STATISTICS_AXES = ("refinement", "momentum_rule", "memory_momentum", "aggregation")
NETWORKS = {
    "none": "fcn",
    "ppm": "pspnet",
    "aspp": "deeplabv3",
    "ocr": "ocrnet",
    "upernet": "upernet",
    "upernet_aspp": "upernet",
}
MODEL_AXES = ("encoder", "output_stride", "atrous_rates", "dropout")
OPTIMIZER_AXES = ("optimizer", "lr")
DATA_AXES = ("batch_size", "crop_size", "image_size")
TRAINER_AXES = ("max_steps", "max_epochs", "precision")
EVALUATION_AXES = ("memory_rows", "tta", "window", "postprocess")
# null for runs with another loss or memory, which the axes `loss` and `memory` already show
METHOD_AXES = frozenset((*RMI_AXES, *MEMORY_AXES, "consistency"))


def axes_of(config: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The flat axes of a resolved LightningCLI config.

    Args:
        config: with `model`, `data` (each `class_path` and `init_args`), `trainer` and `seed_everything`.
        evaluation: `memory_rows`, `tta`, `window`, `postprocess` of an additional test of the trained model.

    Returns:
        One entry per axis; None where the axis does not apply to this run.

    Example:
        >>> model = {"class_path": "beyondpixel.lightning_modules.DeepLabModule",
        ...          "init_args": {"variant": "v3", "loss": {"name": "rmi", "region_size": 5, "pooling": "avg"}}}
        >>> axes = axes_of({"model": model, "data": {"class_path": "a.CamVidDataModule", "init_args": {}}})
        >>> axes["loss"], axes["region_size"], axes["pooling"], axes["model"], axes["dataset"], axes["memory"]
        ('rmi', 5, 'avg', 'deeplab_v3', 'camvid', None)
    """
    model = config["model"].get("init_args", {})
    data = config["data"].get("init_args", {})
    trainer = config.get("trainer", {})
    losses = _losses(model.get("loss"))
    rmi = next((loss for loss in losses if loss["name"] == "rmi"), {})
    return {
        "loss": loss_label(model.get("loss")),
        **{axis: rmi.get(key) for axis, key in RMI_AXES.items()},
        "model": _model_name(config["model"]["class_path"], model),
        **_memory_axes(model),
        **{axis: model.get(axis) for axis in MODEL_AXES},
        **_optimizer_axes(model),
        "dataset": config["data"]["class_path"].rpartition(".")[2].removesuffix("DataModule").lower(),
        **{axis: data.get(axis) for axis in DATA_AXES},
        **{axis: trainer.get(axis) for axis in TRAINER_AXES},
        **{axis: (evaluation or {}).get(axis) for axis in EVALUATION_AXES},
        "seed": config.get("seed_everything"),
    }


def _optimizer_axes(model: Mapping[str, Any]) -> dict[str, Any]:
    """The optimizer (None for the module's default SGD) and its learning rate: the module's or the optimizer's own."""
    optimizer = model.get("optimizer")
    if not isinstance(optimizer, Mapping) or "class_path" not in optimizer:
        return {"optimizer": None, "lr": model.get("lr")}
    arguments = optimizer.get("init_args") or {}
    return {"optimizer": optimizer["class_path"].rpartition(".")[2].lower(), "lr": arguments.get("lr")}


def _memory_axes(model: Mapping[str, Any]) -> dict[str, Any]:
    memory = model.get("memory")
    axes = {axis: model.get(key) for axis, key in MEMORY_AXES.items()}
    axes["consistency"] = model.get("consistency_from_epoch") is not None
    applying = {None: (), "statistics": STATISTICS_AXES}.get(memory, tuple(axes))
    return {
        "memory": memory,
        "context": model.get("context"),
        **{axis: value if axis in applying else None for axis, value in axes.items()},
    }


def _model_name(class_path: str, arguments: Mapping[str, Any]) -> str:
    name = class_path.rpartition(".")[2].removesuffix("Module").lower()
    if arguments.get("context") in NETWORKS:
        method = {None: "", "features": "mcibi_", "statistics": "mcibi++_"}.get(arguments.get("memory"), f"{name}_")
        return method + NETWORKS[arguments["context"]]
    return f"{name}_{arguments['variant']}" if "variant" in arguments else name


def _losses(loss: Any) -> list[dict[str, Any]]:
    entries = loss if isinstance(loss, list) else [loss]
    return [{"name": entry} if isinstance(entry, str) else dict(entry) for entry in entries if entry]


def loss_label(loss: Any) -> str | None:
    """Short label of a loss: its name, or the weighted sum of several.

    Example:
        >>> loss_label([{"name": "ce"}, {"name": "rmi", "weight": 0.5}])
        'ce + 0.5 rmi'
    """
    terms = [(entry["name"], entry.get("weight", 1)) for entry in _losses(loss)]
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in terms) or None


# names of all axes in the order of `axes_of`; they do not depend on the config
AXES = tuple(axes_of({"model": {"class_path": "Model"}, "data": {"class_path": "Data"}}))
