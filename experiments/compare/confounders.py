"""Confounders: what a row differs in from its baseline besides its axes, so that a difference is not due to these alone.

Read from the run folders: the code's commit and whether it was clean, versions, hardware, the data's content, the steps
trained, and every key of the config that no axis stands for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from beyondpixel.experiments.axes import DATA_AXES, RMI_AXES, TRAINER_AXES
from beyondpixel.experiments.run.folder import RunFolder

# What an ablation of a method holds fixed. Where a row differs from its baseline in one of these alone, that is its
# ablation; together with another axis it is a second thing changed at the same time.
RECIPE_AXES = (*DATA_AXES, "lr", *TRAINER_AXES)
LENGTH_AXES = ("max_steps", "max_epochs", "batch_size")  # each of them changes the steps trained
# keys of the config that cannot change a score: where things lie, how fast they are read, what is shown meanwhile
INDIFFERENT_KEYS = (
    "data.root",  # the content is compared instead
    "data.num_workers",
    "data.cache",
    "data.predict_path",
    "data.eval_batch_size",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.profiler",
    "trainer.barebones",
    "trainer.accelerator",  # the environment holds what it was
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.enable_checkpointing",
    "trainer.log_every_n_steps",
    "trainer.num_sanity_val_steps",
)
INDIFFERENT_PACKAGES = ("wandb",)  # it only logs
UNCOMMITTED = ("-dirty", "+changes")
UNKNOWN = "unknown"

Facts = dict[str, Any]


def facts_of(run: RunFolder, record: Mapping[str, Any], confusion: NDArray[Any] | None) -> Facts:
    """All that two runs must have in common besides their axes, by name.

    Args:
        run: the trained run.
        record: its record, with the axes of the evaluation.
        confusion: the test's confusion matrix, if there is one.
    """
    environment = record.get("environment") or {}
    config = run.config
    fingerprint = (record.get("data") or {}).get("fingerprint")
    root = config.get("data", {}).get("init_args", {}).get("root")
    labels = None if confusion is None else " + ".join(str(int(count)) for count in confusion.sum(1))
    content = f"fingerprint {fingerprint}" if fingerprint else f"test labels of {labels} pixels" if labels else None
    accelerators = Counter(environment.get("accelerators") or [])
    packages = environment.get("packages") or {}
    return {
        "commit": _short(record.get("git_commit")),
        "data set": record["axes"].get("dataset"),
        "data": content or f"in {root or UNKNOWN}",
        "steps": run.state.get("step", UNKNOWN),
        "Python": environment.get("python", UNKNOWN),
        **{name: version for name, version in packages.items() if name not in INDIFFERENT_PACKAGES},
        "hardware": ", ".join(f"{number} × {name}" for name, number in sorted(accelerators.items())) or "CPU",
        **{key: value for key, value in _leaves(config) if key.startswith(("data.", "model.", "trainer."))},
    }


def is_uncommitted(commit: str | None) -> bool:
    """Whether the code differed from its commit when the run was made, or is not known."""
    return commit is None or commit.endswith(UNCOMMITTED)


def confounders(runs: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> list[str]:
    """All that must be said of a row before its score is set beside the baseline's.

    Args:
        runs: the row's lines of the frame that have a score.
        baseline: those of the baseline row; empty where there is none or the row is the baseline itself.

    Returns:
        A phrase for each difference, such as `torch 2.11.0 instead of 2.15.0`; none where all is as it should be.
    """
    if not runs:
        return []
    dirty = any(str(run["record"].get("git_commit")).endswith(UNCOMMITTED) for run in runs)
    found = ["uncommitted changes in the code"] if dirty else []
    ours = _values(runs)
    found += [f"{name} {_listed(values)} within the row" for name, values in ours.items() if len(values) > 1]
    if not baseline:
        return found
    axes, their_axes = runs[0]["record"]["axes"], baseline[0]["record"]["axes"]
    changed = [axis for axis in {**axes, **their_axes} if axis != "seed" and axes.get(axis) != their_axes.get(axis)]
    recipe = [axis for axis in changed if axis in RECIPE_AXES]
    ablated = recipe if changed == recipe and len(recipe) == 1 else []
    theirs = _values(baseline)
    for name in {**ours, **theirs}:
        values, others = ours.get(name, [UNKNOWN]), theirs.get(name, [UNKNOWN])
        if values == others or (name == "steps" and any(axis in LENGTH_AXES for axis in recipe)):
            continue
        if "." not in name or (
            name in ours and name in theirs and not _told_by_axes(name, values, others, runs, baseline)
        ):
            found.append(_instead(name, values, others))
    return found + [_instead(axis, [axes.get(axis)], [their_axes.get(axis)]) for axis in recipe if axis not in ablated]


def moved_data(runs: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> str | None:
    """What to say of a row whose data has the baseline's content but lies elsewhere; None where it does not."""
    roots = [{str(run["facts"].get("data.root")) for run in group} for group in (runs, baseline)]
    contents = {run["facts"]["data"] for run in (*runs, *baseline)}
    if (
        not baseline
        or roots[0] == roots[1]
        or len(contents) > 1
        or any(content.startswith("in ") for content in contents)
    ):
        return None
    return f"data.root is {_listed(sorted(roots[0]))} instead of {_listed(sorted(roots[1]))}, with the same {contents.pop()}"


def _values(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Name of a fact to its values in some runs, which ought to be one."""
    values: dict[str, list[Any]] = {}
    for run in runs:
        for name, value in run["facts"].items():
            known = values.setdefault(name, [])
            if name not in INDIFFERENT_KEYS and value not in known:
                known.append(value)
    return {name: sorted(known, key=str) for name, known in values.items()}


def _told_by_axes(
    key: str,
    values: Sequence[Any],
    others: Sequence[Any],
    runs: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
) -> bool:
    """Whether an axis says already that a key of the config differs."""
    axes, their_axes = runs[0]["record"]["axes"], baseline[0]["record"]["axes"]
    name = key.rpartition(".")[2]
    pairs = [([axes.get(axis)], [their_axes.get(axis)]) for axis in axes if axes.get(axis) != their_axes.get(axis)]
    return (
        name in axes
        or name in RMI_AXES.values()
        or (values, others) in pairs
        or name in ("class_path", "variant")  # told by the axes model and dataset
        # the keys of two different losses, though of one name, have nothing to do with each other
        or (axes.get("loss") != their_axes.get("loss") and key.startswith("model.loss."))
    )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        here = prefix if key == "init_args" else f"{prefix}{key}."
        if isinstance(value, Mapping):
            yield from _leaves(value, here)
        else:
            yield here.removesuffix("."), value


def _short(commit: str | None) -> str:
    if commit is None:
        return UNKNOWN
    for suffix in UNCOMMITTED:
        commit = commit.removesuffix(suffix)
    return commit[:9]


def _instead(name: str, ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    return f"{name} {_listed(ours)} instead of {_listed(theirs)}"


def _listed(values: Sequence[Any]) -> str:
    return " and ".join("none" if value is None else str(value) for value in values)
