"""The model card of a trained module, filled in from its data and its run folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# Jinja template, filled in by huggingface_hub
MODEL_CARD = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")


def card_values(
    class_name: str, hyper_parameters: Mapping[str, Any], data: Mapping[str, Any], run: str | Path | None
) -> dict[str, Any]:
    """Compute the values of the template's variables.

    Args:
        class_name: class of the module.
        hyper_parameters: those of the module.
        data: its data description; may be empty.
        run: a run folder with `config.yaml`, `run.json` and `summary.json`; None omits recipe and scores.

    Raises:
        FileNotFoundError: if one of these is missing from the run folder.

    Example:
        >>> values = card_values("DeepLabModule", {"num_classes": 2, "class_names": ["road", "car"]}, {}, run=None)
        >>> values["classes"]
        [('road', ''), ('car', '')]
    """
    classes = int(hyper_parameters["num_classes"])
    names = data.get("class_names") or hyper_parameters.get("class_names") or list(map(str, range(classes)))
    colors = [f"#{bytes(color).hex()}" for color in data.get("palette") or []] or [""] * classes
    values = {
        "class_name": class_name,
        "num_classes": classes,
        "dataset": data.get("dataset_name"),
        "input": data.get("input"),
        "mean": data.get("mean"),
        "std": data.get("std"),
        "classes": list(zip(names, colors, strict=True)),
    }
    return values if run is None else values | _run_values(Path(run))


def _run_values(run: Path) -> dict[str, Any]:
    for name in ("config.yaml", "run.json", "summary.json"):
        if not (run / name).is_file():
            raise FileNotFoundError(f"run={run} has no {name}; expected the folder of a tested run")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    recipe = {key: config[key] for key in ("data", "model", "seed_everything") if key in config}
    length = {key: config.get("trainer", {}).get(key) for key in ("max_steps", "max_epochs", "precision", "devices")}
    scores = {name.removeprefix("test/"): value for name, value in summary.items() if name.startswith("test/")}
    return {
        "seed": record.get("seed"),
        "commit": record.get("git_commit"),
        "recipe": yaml.safe_dump({**recipe, "trainer": length}, sort_keys=False),
        "scores": [(name, "none" if value is None else f"{value:.4g}") for name, value in scores.items()],
    }
