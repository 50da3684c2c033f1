"""Train and test one run, and keep its folder up to date."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.accelerators import MPSAccelerator
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ProgressBar, RichProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import CheckpointIO, TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_info

from beyondpixel.datamodules.datasets.errors import DataError
from beyondpixel.experiments.build import Built, build_all
from beyondpixel.experiments.errors import UserError, as_user_error
from beyondpixel.experiments.evaluation_recorder import STAGES, EvaluationRecorder
from beyondpixel.experiments.finite_guard import FiniteGuard
from beyondpixel.experiments.inference.checkpoints import check_fits
from beyondpixel.experiments.inference.inferers import InfererOptions
from beyondpixel.experiments.last_checkpoint import LastCheckpoint
from beyondpixel.experiments.lightning_cli import quiet_lightning
from beyondpixel.experiments.recorder import RunRecorder, identify
from beyondpixel.experiments.run.folder import RunFolder, replacing
from beyondpixel.experiments.run.processes import process_rank
from beyondpixel.experiments.step_seeds import StepSeeds
from beyondpixel.experiments.stop_signals import StopAtOnce
from beyondpixel.experiments.tracking import AxesLogger, ClassTable, RunFolderLogger, finish_wandb, wandb_logger
from beyondpixel.lightning_modules.callbacks import ConfusionFigure, InferenceTime, PredictionImages, Throughput
from beyondpixel.lightning_modules.networks import without_pretrained_weights

# printed after an evaluation by hand
MAIN_SCORES = ("mIoU", "mIoU_low", "mIoU_high", "pixel_accuracy", "mean_accuracy", "boundary_IoU", "boundary_F")


def train(
    folder: RunFolder, config: Mapping[str, Any], *, resume: Path | None, overwrite: bool = False, test: bool = True
) -> Trainer:
    """Train the run of a config, from scratch or from a checkpoint, and test its last checkpoint, as the papers do.

    Args:
        folder: the run's folder, whose lock this process holds.
        config: the resolved config.
        resume: the checkpoint to resume from.
        overwrite: remove the files of an earlier run, once everything is built.
        test: whether to test after the training.

    Returns:
        The Trainer, with its scores in `callback_metrics`.
    """
    quiet_lightning()
    seed_everything(config["seed_everything"], workers=True, verbose=False)
    # a checkpoint has all weights, so the pretrained weights of the encoder need not be available any more
    with without_pretrained_weights() if resume else nullcontext():
        built = build_all(config)
    if overwrite and process_rank() == 0:  # the other processes start when the new config is already there
        _make_trainer(built, callbacks=[], loggers=False)  # an error in its arguments must not cost the earlier run
        folder.clear()
    record = identify(folder, config, resumed=resume is not None)
    trainer = _make_trainer(
        built,
        callbacks=[*_training_callbacks(folder, config["seed_everything"]), RunRecorder(folder, record)],
        loggers=_loggers(built, folder, dict(config), record),
        default_root_dir=str(folder.path),
    )
    count = sum(parameter.numel() for parameter in built.module.parameters() if parameter.requires_grad)
    rank_zero_info(f"{type(built.module).__name__} with {count / 1e6:.2f} million trainable parameters")
    try:
        with as_user_error(DataError):
            trainer.fit(built.module, built.datamodule, ckpt_path=resume, weights_only=True if resume else None)
            if test:
                trainer.test(built.module, built.datamodule, verbose=False)
        for logger in trainer.loggers:
            if isinstance(logger, AxesLogger):
                logger.log_model(folder.last_checkpoint)
    finally:
        finish_wandb(1 if sys.exc_info()[0] else 0)
    return trainer


def evaluate(
    stage: str,
    config: Mapping[str, Any],
    checkpoint: Path,
    *,
    folder: RunFolder | None,
    inferer: InfererOptions | None = None,
) -> Trainer:
    """Load a verified checkpoint, and validate or test it.

    Args:
        stage: `validate` or `test`.
        config: the resolved config.
        checkpoint: the file.
        folder: where scores, confusion matrix and pixel counts are written; None records nothing.
        inferer: how images are predicted; by default once and whole.
    """
    quiet_lightning()
    seed_everything(config["seed_everything"], workers=True, verbose=False)
    with without_pretrained_weights():
        built = build_all(config)
    check_fits(checkpoint, built.module)
    module: Any = built.module
    datamodule: Any = built.datamodule
    if inferer is not None:
        module.inferer = inferer.build(datamodule)
    trainer = _make_trainer(
        built,
        callbacks=[StopAtOnce(None), EvaluationRecorder(folder), InferenceTime()],
        loggers=False,
        enable_checkpointing=False,
    )
    with as_user_error(DataError):
        getattr(trainer, stage)(module, datamodule, ckpt_path=checkpoint, weights_only=True, verbose=False)
    if process_rank() == 0:
        print(_scores_text(STAGES[stage], trainer.callback_metrics))
    return trainer


def _scores_text(prefix: str, metrics: Mapping[str, Any]) -> str:
    """The main scores and the IoU of each class, in percent."""
    names = [name for name in (f"{prefix}/{score}" for score in MAIN_SCORES) if name in metrics]
    main = ", ".join(f"{name} {100 * float(metrics[name]):.2f}" for name in names)
    ious = {name.removeprefix(f"{prefix}/IoU/"): value for name, value in metrics.items() if f"{prefix}/IoU/" in name}
    classes = ", ".join(f"{name} {100 * float(value):.2f}" for name, value in ious.items())
    return f"Scores in %: {main}\nIoU in %: {classes}"


def _training_callbacks(folder: RunFolder, seed: int) -> list[Callback]:
    """Callbacks: checkpoints `last` and `best`, learning rate, speeds, images, and test results in the run folder."""
    return [
        # first, so that no other callback sees the batch before which it stops
        LastCheckpoint(folder),
        StopAtOnce(folder),
        StepSeeds(seed),
        FiniteGuard(),
        _BestCheckpoint(
            folder.last_checkpoint.parent,
            "best",
            monitor="val/mIoU",
            mode="max",
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=False,  # only validation logs the metric; without it there is no `best`
        ),
        LearningRateMonitor(logging_interval="step"),
        Throughput(),
        PredictionImages(),
        ClassTable(),
        ConfusionFigure(),
        InferenceTime(),
        EvaluationRecorder(folder),
    ]


def _loggers(built: Built, folder: RunFolder, config: dict[str, Any], record: dict[str, Any]) -> list[Logger]:
    """The run folder's logger, and the user's or by default W&B's."""
    given = built.trainer["logger"]
    others = wandb_logger(folder, config, record) if given in (None, True) else given or None
    return [RunFolderLogger(folder), *_as_list(others)]


def _make_trainer(built: Built, *, callbacks: list[Callback], loggers: Any, **arguments: Any) -> Trainer:
    given = dict(built.trainer)
    own, plugins = _as_list(given.pop("callbacks")), _as_list(given.pop("plugins"))
    given.pop("logger")
    given["accelerator"] = _accelerator(given["accelerator"])
    given["enable_model_summary"] = bool(given["enable_model_summary"])  # by default Lightning prints a table
    if given["enable_progress_bar"] is not False and not any(isinstance(one, ProgressBar) for one in own):
        own.append(_StepProgressBar())
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(_AtomicCheckpointIO())
    single_task = int(os.environ.get("SLURM_NTASKS", "1")) == 1
    # Lightning takes a shell in an allocation for a job step of several tasks, and then lacks variables that only
    # srun sets.
    if "SLURM_JOB_ID" in os.environ and single_task and not any(isinstance(p, ClusterEnvironment) for p in plugins):
        plugins.append(LightningEnvironment())
    try:
        return Trainer(**{**given, **arguments}, callbacks=[*own, *callbacks], logger=loggers, plugins=plugins)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer: {error}") from error


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a temporary file in its folder and rename it once it is complete and on the disk.

    Lightning's own plugin writes to the system's temporary folder first; if that is another file system, moving is
    copying, and a process that is killed meanwhile leaves half a checkpoint instead of the last complete one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)


class _BestCheckpoint(ModelCheckpoint):
    """Lightning's callback, which forgets the best score of a run whose folder was moved, and replaces its `best`."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        score, file = state_dict["best_model_score"], f"{self.dirpath}/best.ckpt"
        if score is not None and Path(file).is_file():  # a run that starts from another run's checkpoint has none yet
            here = {"dirpath": self.dirpath, "best_model_path": file, "kth_best_model_path": file}
            state_dict = {**state_dict, **here, "best_k_models": {file: score}}
        super().load_state_dict(state_dict)


class _StepProgressBar(RichProgressBar):
    """Lightning's progress bar without the last of unlimited epochs (-2) and the logger's version."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {key: value for key, value in super().get_metrics(trainer, pl_module).items() if key != "v_num"}

    def _get_train_description(self, current_epoch: int) -> str:
        text = super()._get_train_description(current_epoch)
        return text.replace("/-2", "") if self.trainer.max_epochs == -1 else text


def _accelerator(given: Any) -> Any:
    """The requested accelerator, but never Apple's GPU, which has no float64: losses and metrics are summed in it."""
    if given not in ("auto", "gpu", "mps") or not MPSAccelerator.is_available():
        return given
    if given != "auto":
        raise UserError(
            f"trainer.accelerator: {given!r} is Apple's GPU here, which has no float64, in which losses and metrics "
            "are summed; use --trainer.accelerator cpu"
        )
    rank_zero_info("Using the CPU: Apple's GPU has no float64, in which losses and metrics are summed")
    warnings.filterwarnings("ignore", message="GPU available but not used")
    return "cpu"


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
