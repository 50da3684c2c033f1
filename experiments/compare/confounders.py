"""Confounders: differences between a row and its baseline other than its axes, which may also explain its score.

Read from the run folders: the code's commit and whether it was clean, versions, hardware, the data's content, the steps
trained, and every config key that no axis covers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from beyondpixel.experiments.axes import DATA_AXES, MEMORY_AXES, MODEL_AXES, OPTIMIZER_AXES, RMI_AXES, TRAINER_AXES
from beyondpixel.experiments.merge import leaves
from beyondpixel.experiments.run.folder import RunFolder

# Axes that an ablation of a method holds fixed. A row that differs from its baseline in one of these alone is an
# ablation of it; together with another axis it is a confounder.
RECIPE_AXES = (*DATA_AXES, *OPTIMIZER_AXES, *TRAINER_AXES)
LENGTH_AXES = ("max_steps", "max_epochs", "batch_size")  # each changes the number of steps trained
ROOT = "data.root"
FINGERPRINT, LABELS = CONTENT = ("training data", "test labels")
# config keys that cannot change a score: locations, speed of reading, logging and display
IGNORED_KEYS = (
    ROOT,  # the content is compared instead
    "data.num_workers",
    "data.cache",
    "data.predict_path",
    "data.timeout",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.profiler",
    "trainer.barebones",
    "trainer.accelerator",  # recorded in the environment
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.enable_checkpointing",
    "trainer.log_every_n_steps",
    "trainer.num_sanity_val_steps",
)
# compared as a whole: if one config has no such class, the keys of the other's are not in both
WHOLE_KEYS = ("optimizer", "lr_scheduler")
# config key to the axis that covers it
AXIS_OF_KEY = {
    **{f"model.loss.{key}": axis for axis, key in RMI_AXES.items()},
    **{f"model.{key}": axis for axis, key in MEMORY_AXES.items()},
    **{f"model.{axis}": axis for axis in (*MODEL_AXES, *OPTIMIZER_AXES, "memory", "context")},
    "model.consistency_from_epoch": "consistency",
    "model.class_path": "model",
    "model.variant": "model",
    "model.optimizer.lr": "lr",
    "data.class_path": "dataset",
    **{f"data.{axis}": axis for axis in DATA_AXES},
    **{f"trainer.{axis}": axis for axis in TRAINER_AXES},
}
IGNORED_PACKAGES = ("wandb",)  # it only logs
UNCOMMITTED = "-dirty"
UNKNOWN = "unknown"
PARTS = ("data.", "model.", "trainer.")

Facts = dict[str, Any]
Values = dict[str, list[Any]]  # distinct values in several runs, by name
Changes = dict[str, tuple[list[Any], list[Any]]]  # ours and the baseline's, by name
Lines = Sequence[Mapping[str, Any]]  # of `Runs.frame`


def facts_of(run: RunFolder, record: Mapping[str, Any], confusion: NDArray[Any] | None) -> Facts:
    """Everything that must be equal in two runs besides their axes, by name; the record has the evaluation's axes."""
    environment, settings = record.get("environment") or {}, _settings(run.config)
    accelerators = Counter(environment.get("accelerators", ()))
    packages = environment.get("packages", {})
    return {
        "commit": _short(record.get("git_commit")),
        "data set": record["axes"].get("dataset"),
        **(_content(record, confusion) or {"data": f"in {settings.get(ROOT) or UNKNOWN}"}),
        "steps": run.state.get("step", UNKNOWN),
        "Python": environment.get("python", UNKNOWN),
        **{name: version for name, version in packages.items() if name not in IGNORED_PACKAGES},
        "hardware": ", ".join(f"{number} × {name}" for name, number in sorted(accelerators.items())) or "CPU",
        **settings,
    }


def _content(record: Mapping[str, Any], confusion: NDArray[Any] | None) -> Facts:
    """What is known of the data's content."""
    fingerprint = (record.get("data") or {}).get("fingerprint")
    content = {FINGERPRINT: fingerprint} if fingerprint else {}
    if confusion is not None:
        content[LABELS] = f"({' + '.join(str(int(n)) for n in confusion.sum(1))} pixels)"
    return content


def _settings(config: Mapping[str, Any]) -> Facts:
    """Config keys by dotted name; the learning rate, which is an axis, apart from the rest of `WHOLE_KEYS`."""
    model = config.get("model", {}).get("init_args", {})
    settings = {
        ".".join(key for key in keys if key != "init_args"): value
        for keys, value in leaves(config)
        if not {*keys} & {*WHOLE_KEYS}
    }
    for key in WHOLE_KEYS:
        chosen = model.get(key)
        arguments = dict((chosen.get("init_args") if isinstance(chosen, Mapping) else None) or {})
        if "lr" in arguments:
            settings[f"model.{key}.lr"] = arguments.pop("lr")
            chosen = {**chosen, "init_args": arguments}
        settings[f"model.{key}"] = chosen
    return {name: value for name, value in settings.items() if name.startswith(PARTS)}


def is_uncommitted(commit: str | None) -> bool:
    """Whether the code differed from its commit when the run was made."""
    return any(one.endswith(UNCOMMITTED) for one in (commit or "").split(", "))


def confounders(runs: Lines, baseline: Lines) -> list[str]:
    """A phrase for each difference between a row and its baseline, such as `torch 2.11.0 instead of 2.15.0`.

    Args:
        runs: the row's lines of the frame that have a score.
        baseline: those of the baseline row; empty if there is none or the row is the baseline itself.
    """
    found = ["uncommitted changes in the code"] if any(is_uncommitted(run["commit"]) for run in runs) else []
    differences = _unexplained(runs, baseline) if runs and baseline else {}
    found += [
        f"{name} {_listed(values)} within the row"
        for name, values in _values(runs).items()
        if len(values) > 1 and name not in differences
    ]
    seeds = Counter(run["seed"] for run in runs)  # the same training again would pass for another seed's
    found += [f"seed {seed} in {number} runs of the row" for seed, number in seeds.items() if number > 1]
    return found + [_difference(name, *change) for name, change in differences.items()]


def _unexplained(runs: Lines, baseline: Lines) -> Changes:
    """Facts that differ, and axes of the recipe that were changed with another axis, with our values and theirs."""
    ours, theirs = _values(runs), _values(baseline)
    # keys of a class or loss that only one of the two uses
    one_sided = {name for name in ours.keys() ^ theirs.keys() if name.startswith(PARTS)}
    axes = _changes(_axes(runs), _axes(baseline), missing=None)
    facts = {
        name: change
        for name, change in _changes(ours, theirs, missing=UNKNOWN).items()
        if name not in one_sided and not _is_explained(name, axes)
    }
    recipe = {axis: change for axis, change in axes.items() if axis in RECIPE_AXES and len(axes) > 1}
    return {**facts, **recipe}


def moved_data(runs: Lines, baseline: Lines) -> str | None:
    """Phrase for a row whose data has the baseline's content but another root folder; None otherwise."""
    ours, theirs = (sorted({str(run["facts"].get(ROOT)) for run in group}) for group in (runs, baseline))
    contents = {
        " and ".join(f"{name} {run['facts'][name]}" for name in CONTENT if name in run["facts"])
        for run in (*runs, *baseline)
    }
    if not runs or not baseline or ours == theirs or len(contents) > 1 or contents == {""}:
        return None
    return f"{_difference(ROOT, ours, theirs)}, with the same {contents.pop()}"


def _axes(runs: Lines) -> Values:
    return {axis: [value] for axis, value in runs[0]["record"]["axes"].items() if axis != "seed"}


def _values(runs: Lines) -> Values:
    """Distinct values of each fact, by its name; one value is expected."""
    values: Values = {}
    for run in runs:
        for name, value in run["facts"].items():
            if name not in IGNORED_KEYS and value not in values.setdefault(name, []):
                values[name].append(value)
    return {name: sorted(known, key=str) for name, known in values.items()}


def _changes(ours: Values, theirs: Values, *, missing: Any) -> Changes:
    """Names with different values, with our values and theirs."""
    both = {name: (ours.get(name, [missing]), theirs.get(name, [missing])) for name in {**ours, **theirs}}
    return {name: (values, others) for name, (values, others) in both.items() if values != others}


def _is_explained(name: str, changed: Mapping[str, Any]) -> bool:
    """Whether a changed axis already explains that a fact differs."""
    if not name.startswith(PARTS):
        return name == "steps" and any(axis in LENGTH_AXES for axis in changed)
    # keys of two losses are unrelated even if they have the same name
    return ("loss" in changed and name.startswith("model.loss")) or AXIS_OF_KEY.get(name) in changed


def _short(commit: str | None) -> str:
    if commit is None:
        return UNKNOWN
    return " + ".join(dict.fromkeys(one.removesuffix(UNCOMMITTED)[:9] for one in commit.split(", ")))


def _difference(name: str, ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    return f"{name} {_listed(ours)} instead of {_listed(theirs)}"


def _listed(values: Sequence[Any]) -> str:
    return " and ".join("none" if value is None else str(value) for value in values)
