"""What a row differs in besides its axes: what makes a comparison one of apples with pears.

Told from the run folders alone: the code's commit and whether it was clean, versions, hardware, the labels that were
tested on, the steps trained, and every key of the config that no axis stands for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from beyondpixel.experiments.axes import DATA_AXES, RMI_AXES, TRAINER_AXES
from beyondpixel.experiments.run_folder import RunFolder

# What an ablation of a method holds fixed. Where a row differs from its baseline in one of these alone, that is its
# ablation; together with another axis it is a second thing changed at the same time.
RECIPE_AXES = (*DATA_AXES, "lr", *TRAINER_AXES)
LENGTH_AXES = ("max_steps", "max_epochs", "batch_size")  # each of them changes the steps trained
# keys of the config that cannot change a score: where things lie, how fast they are read, what is shown meanwhile
INDIFFERENT_KEYS = (
    "data.root",  # the labels tested on are compared instead
    "data.num_workers",
    "data.cache",
    "data.predict_path",
    "data.eval_batch_size",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.profiler",
    "trainer.barebones",
    "trainer.accelerator",  # what it came to is told by the environment
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.enable_checkpointing",
    "trainer.log_every_n_steps",
    "trainer.num_sanity_val_steps",
)
# of a run that only evaluates: the devices that computed its score, which is the same on any number of them
INDIFFERENT_KEYS_OF_EVALUATIONS = ("trainer.devices", "trainer.num_nodes", "trainer.strategy")
INDIFFERENT_PACKAGES = ("wandb",)  # it only watches
UNKNOWN = "unknown"


def remarks(runs: Sequence[RunFolder], baseline: Sequence[RunFolder]) -> tuple[str, ...]:
    """All that must be said of a row before its number is set beside the baseline's.

    Args:
        runs: the row's runs that have a result.
        baseline: those of the baseline row; empty where there is none or the row is the baseline itself.

    Returns:
        A phrase for each difference, such as `torch 2.11.0 instead of 2.15.0`; none where all is as it should be.
    """
    if not runs:
        return ()
    found = ["uncommitted changes in the code"] if any(_is_dirty(run) for run in runs) else []
    ours = _facts(runs)
    found += [f"{name} {_listed(values)} within the row" for name, values in ours.items() if len(values) > 1]
    if baseline:
        theirs = _facts(baseline)
        axes, recipe = _changed_axes(runs[0], baseline[0])
        ablated = recipe[0] if len(recipe) == 1 and not axes else None
        known_length = any(axis in LENGTH_AXES for axis in recipe)  # said below, or what the row is about
        for name in {**ours, **theirs}:
            values, others = ours.get(name, [UNKNOWN]), theirs.get(name, [UNKNOWN])
            if values != others and not (name == "steps" and known_length):
                found.append(_instead(name, values, others))
        ours_axes, their_axes = runs[0].record["axes"], baseline[0].record["axes"]
        found += [_instead(axis, [ours_axes.get(axis)], [their_axes.get(axis)]) for axis in recipe if axis != ablated]
        found += _config_differences(runs[0], baseline[0])
    return tuple(found)


def _facts(runs: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Name of a fact to its values in some runs, which ought to be one."""
    facts: dict[str, list[Any]] = {}
    for run in runs:
        for name, value in _facts_of(run):
            values = facts.setdefault(name, [])
            if value not in values:
                values.append(value)
    return {name: sorted(values, key=str) for name, values in facts.items()}


def _facts_of(run: RunFolder) -> Iterator[tuple[str, Any]]:
    record = run.record
    environment = record.get("environment", {})
    yield "commit", _commit(record.get("git_commit"))
    yield "data set", record["axes"].get("dataset")
    yield "test labels", _test_labels(run)
    yield "steps", run.state.get("step", UNKNOWN)
    yield "Python", environment.get("python", UNKNOWN)
    for name, version in environment.get("packages", {}).items():
        if name not in INDIFFERENT_PACKAGES:
            yield name, version
    counted = Counter(environment.get("accelerators", []))
    yield "hardware", ", ".join(f"{number} × {name}" for name, number in sorted(counted.items())) or "CPU"


def _is_dirty(run: RunFolder) -> bool:
    return str(run.record.get("git_commit")).endswith("-dirty")


def _commit(commit: str | None) -> str:
    return UNKNOWN if commit is None else commit.removesuffix("-dirty")[:9]


def _test_labels(run: RunFolder) -> str:
    """How many pixels of each class the test truth had: the same in two runs if they were tested on the same data."""
    if not run.confusion_file.exists():
        return f"in {run.config.get('data', {}).get('init_args', {}).get('root', UNKNOWN)}"
    with np.load(run.confusion_file) as arrays:
        pixels = arrays["matrix"].sum(1)
    return f"({' + '.join(str(int(count)) for count in pixels)} pixels)"


def _changed_axes(run: RunFolder, baseline: RunFolder) -> tuple[list[str], list[str]]:
    """The axes in which two runs differ: those of the method, and those of the recipe."""
    ours, theirs = run.record["axes"], baseline.record["axes"]
    changed = [axis for axis in {**ours, **theirs} if axis != "seed" and ours.get(axis) != theirs.get(axis)]
    return [axis for axis in changed if axis not in RECIPE_AXES], [axis for axis in changed if axis in RECIPE_AXES]


def _config_differences(run: RunFolder, baseline: RunFolder) -> list[str]:
    """Keys that both configs have, with different values, and no axis tells."""
    ours, theirs = dict(_leaves(run.config)), dict(_leaves(baseline.config))
    axes, their_axes = run.record["axes"], baseline.record["axes"]
    told = [(axes.get(axis), their_axes.get(axis)) for axis in axes if axes.get(axis) != their_axes.get(axis)]
    # the keys of two different losses, though of one name, have nothing to do with each other
    other_loss = axes.get("loss") != their_axes.get("loss")
    evaluates = "evaluation" in run.record or "evaluation" in baseline.record
    indifferent = INDIFFERENT_KEYS + (INDIFFERENT_KEYS_OF_EVALUATIONS if evaluates else ())
    found = []
    for key in ours.keys() & theirs.keys():
        name = key.rpartition(".")[2]
        if (
            ours[key] == theirs[key]
            or not key.startswith(("data.", "model.", "trainer."))
            or key in indifferent
            or name in axes
            or name in RMI_AXES.values()
            or (ours[key], theirs[key]) in told
            or name in ("class_path", "variant")  # told by the axes model and dataset
            or (other_loss and key.startswith("model.loss."))
        ):
            continue
        found.append(_instead(key, [ours[key]], [theirs[key]]))
    return sorted(found)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        here = prefix if key == "init_args" else f"{prefix}{key}."
        if isinstance(value, Mapping):
            yield from _leaves(value, here)
        else:
            yield here.removesuffix("."), value


def _instead(name: str, ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    return f"{name} {_listed(ours)} instead of {_listed(theirs)}"


def _listed(values: Sequence[Any]) -> str:
    return " and ".join("none" if value is None else str(value) for value in values)
