"""Evaluations of trained runs, and the storage of their results.

The test of `last.ckpt` belongs to the run folder itself. Every other one, with an inferer or of another checkpoint,
has a folder `evaluations/<slug>/` with `summary.json`, `confusion.npz`, `test_images.npz` and, once it is complete,
`run.json`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from beyondpixel.experiments.axes import axes_of
from beyondpixel.experiments.checksums import checksum, trained_checksum
from beyondpixel.experiments.inference.checkpoints import read_checkpoint
from beyondpixel.experiments.inference.inferers import InfererOptions, parse_inferer
from beyondpixel.experiments.resume import differences
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.run.processes import process_rank
from beyondpixel.experiments.run.provenance import describe_environment, git_commit

# trainer keys that scores depend on, besides all of model and data
TRAINER_KEYS = ("precision", "limit_val_batches", "limit_test_batches", "overfit_batches", "fast_dev_run")
COPIED = ("name", "table", "row", "seed", "reference")


def evaluate_checkpoint(
    stage: str, checkpoint: Path, config: Mapping[str, Any], *, inferer: str | None = None
) -> RunFolder | None:
    """Validate or test a checkpoint, and save the results in the folder of its run if they are results of that run.

    Args:
        stage: `validate` or `test`.
        checkpoint: the file.
        config: the resolved config.
        inferer: such as `crf:5`, see `parse_inferer`; None predicts each image once, whole.

    Returns:
        The folder with the results; None, with a printed reason, if they are not saved.

    Raises:
        UserError: if the checkpoint is damaged or does not fit, or the inferer is unknown.
    """
    from beyondpixel.experiments.training import evaluate

    options = None if inferer is None else parse_inferer(inferer)
    read_checkpoint(checkpoint)
    run = RunFolder(checkpoint.resolve().parent.parent)
    reason = _why_not_saved(stage, run, checkpoint, config, inferer)
    if reason is not None:
        evaluate(stage, config, checkpoint, folder=None, inferer=options)
        print(f"The scores are not saved in a run folder: {reason}")
        return None
    other = None if checkpoint.resolve() == run.last_checkpoint.resolve() else checkpoint
    slug = "-".join(filter(None, [options.slug if options else "", other.stem if other else ""]))
    folder = _folder(run, slug) if slug else run
    if slug and process_rank() == 0:
        shutil.rmtree(folder.path, ignore_errors=True)
    evaluate(stage, config, checkpoint, folder=folder, inferer=options)
    if slug and process_rank() == 0:  # written last, so that an interrupted evaluation does not count as complete
        words = " of ".join(filter(None, [inferer, other.name if other else None]))
        folder.record = _record_of(run, config, options, words, other)
    return folder


def _record_of(
    run: RunFolder, config: Mapping[str, Any], options: InfererOptions | None, words: str, other: Path | None
) -> dict[str, Any]:
    axes = {} if options is None else options.axes
    return {
        **{key: value for key, value in run.record.items() if key in COPIED},
        "axes": axes_of(config, axes),
        "git_commit": git_commit(),
        "environment": describe_environment(),
        "evaluation": {
            "words": words,
            **axes,
            "checkpoint": trained_checksum(run) if other is None else checksum(other),
        },
    }


def missing_evaluations(run: RunFolder, inferers: Iterable[str]) -> list[str]:
    """Inferers among the given ones whose results are missing, incomplete, or of another checkpoint.

    Raises:
        UserError: for an unknown inferer.
    """
    wanted = list(dict.fromkeys(inferers))
    current = trained_checksum(run) if wanted else None  # a launch checks thousands of runs, most without evaluations
    return [one for one in wanted if not _is_complete(_folder(run, parse_inferer(one).slug), current)]


def _is_complete(folder: RunFolder, checkpoint: str | None) -> bool:
    files = (folder.path / "summary.json", folder.confusion_file, folder.images_file("test"))
    if folder.damage or not all(file.is_file() for file in files):
        return False
    evaluation = folder.record.get("evaluation")
    return isinstance(evaluation, dict) and evaluation.get("checkpoint") == checkpoint


def _folder(run: RunFolder, slug: str) -> RunFolder:
    return RunFolder(run.path / "evaluations" / slug)


def _why_not_saved(
    stage: str, run: RunFolder, checkpoint: Path, config: Mapping[str, Any], inferer: str | None
) -> str | None:
    if not run.config_file.is_file() or checkpoint.resolve().parent.name != "checkpoints":
        return f"{checkpoint} is not in a run folder"
    if run.damage:
        return run.damage
    if not run.status.is_finished:
        return f"{run.path} is not fully trained, its state is {run.status}"
    changed = differences(_relevant(run.config), _relevant(config))
    if changed:
        return f"the config is not that of {run.path} ({'; '.join(changed[:5])})"
    if stage == "validate" and (inferer is not None or checkpoint.resolve() != run.last_checkpoint.resolve()):
        return "of validations only that of last.ckpt without an inferer is saved"
    return None


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    trainer = config.get("trainer", {})
    return {
        "model": config.get("model"),
        "data": config.get("data"),
        "trainer": {key: trainer.get(key) for key in TRAINER_KEYS},
    }
