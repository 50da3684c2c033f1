"""Loggers of the run folder, which is always used, and of W&B, which goes offline automatically; table of classes."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.wandb_arguments import run_arguments
from beyondpixel.experiments.wandb_log import UNDELIVERED
from beyondpixel.experiments.wandb_server import offline_reason

# logged for each class, as test/IoU/road
SCORES_OF_CLASSES = ("IoU", "boundary_IoU", "boundary_F")
# one panel per key would hide the other panels
WITHOUT_PANEL = tuple(f"{stage}/{name}/*" for stage in ("val", "test") for name in SCORES_OF_CLASSES)
# W&B's own timeout is minutes at the start, and infinite at the end
SECONDS_TO_BEGIN, SECONDS_TO_END, SECONDS_TO_UPLOAD = 30.0, 60.0, 900.0


class RunFolderLogger(Logger):
    """Write every logged metric to the run folder: `metrics.jsonl` at once, `summary.json` when a stage ends.

    `EvaluationRecorder` writes a test's scores to the summary, last of all: they mark a test as done.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder
        self._latest: dict[str, float] = {}

    @property
    def name(self) -> str:
        """The run's folder name."""
        return self.folder.path.name

    @property
    def version(self) -> str:
        """Runs are not versioned: the folder is the run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.folder.path)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml already holds the whole config."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a line."""
        metrics = {key: float(value) for key, value in metrics.items()}
        self._latest |= {key: value for key, value in metrics.items() if not key.startswith("test/")}
        self.folder.append_metrics(metrics, step=step or 0)

    @rank_zero_only
    def save(self) -> None:
        """Update the summary; Lightning calls this at the end, and after a failure."""
        if self._latest:
            self.folder.summary = {**self.folder.summary, **self._latest}


class AxesLogger(WandbLogger):
    """W&B logger with a fixed config: flat axes, and the resolved config below `config`.

    W&B logs through a process of its own, which a cluster ends together with a job, and to a server that may fail at
    any time. The training must not fail because of either: it continues to its checkpoint.
    """

    _disconnected = False

    def __init__(self, *, keeps_model: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.keeps_model = keeps_model
        self._wandb_init.pop("anonymous")  # W&B warns about it, whatever its value

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, started at the first use; offline if the server rejects it."""
        started = self._experiment is not None
        run = self._start_run()
        if not started:
            for name in WITHOUT_PANEL:
                run.define_metric(name, hidden=True)
        return run

    def _start_run(self) -> Any:
        import wandb
        from wandb.errors import Error

        try:
            return super().experiment
        except (Error, OSError) as error:
            if self._wandb_init["mode"] == "offline":
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            rank_zero_warn(f"W&B: {reason}; logging offline, upload later with: beyondpixel sync {self.save_dir}")
            self._wandb_init["mode"] = "offline"
            wandb.teardown()  # its process still uses the run's id
            return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics, images and tables; skipped once W&B's process has ended, or its disk is full."""
        if self._disconnected:
            return
        try:
            super().log_metrics(metrics, step)
        except OSError as error:
            self._disconnected = True
            rank_zero_warn(f"W&B stopped logging ({error}); the run continues without it, its folder has everything")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Do nothing: Lightning would overwrite axes with the module's hyper-parameters of the same names."""

    @rank_zero_only
    def log_model(self, checkpoint: Path) -> None:
        """Log the checkpoint that the run's scores come from as an artifact, if `keeps_model`."""
        if not self.keeps_model:
            return
        import wandb

        try:
            artifact = wandb.Artifact(f"model-{self.experiment.id}", type="model")
            artifact.add_file(str(checkpoint))
            self.experiment.log_artifact(artifact)
        except OSError as error:
            rank_zero_warn(f"W&B could not store {checkpoint} ({error}); the run folder has it")


class ClassTable(Callback):
    """Log the table `test/classes` after a test, to loggers with tables (W&B): one row per class, one column per score.

    Each score is also in W&B's history, without a panel of its own (see `AxesLogger`).

    Example:
        >>> trainer = Trainer(callbacks=[ClassTable()], logger=False, accelerator="cpu")
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the table from the first rank; all ranks have the same scores."""
        scores = trainer.callback_metrics
        classes = [key.removeprefix("test/IoU/") for key in scores if key.startswith("test/IoU/")]
        if not classes or not trainer.is_global_zero:
            return
        columns = [name for name in SCORES_OF_CLASSES if f"test/{name}/{classes[0]}" in scores]
        lines = [[label, *(float(scores[f"test/{name}/{label}"]) for name in columns)] for label in classes]
        for logger in trainer.loggers:
            log_table = getattr(logger, "log_table", None)
            if callable(log_table):
                log_table("test/classes", columns=["class", *columns], data=lines, step=trainer.global_step)


def _keeps_model() -> bool:
    """Whether W&B stores the last checkpoint of a run: `WANDB_LOG_MODEL=end`, as in Hugging Face's Trainer."""
    value = os.environ.get("WANDB_LOG_MODEL") or "false"
    if value not in ("end", "false"):
        raise UserError(
            f"WANDB_LOG_MODEL={value}: expected end, which stores the last checkpoint when the run ends, or false; "
            "set one of these or unset it"
        )
    return value == "end"


def wandb_logger(folder: RunFolder, config: dict[str, Any], record: dict[str, Any]) -> Logger | None:
    """The W&B logger of a run; None if the user has disabled W&B (`WANDB_MODE=disabled`).

    The group is the table's row, so that W&B averages over seeds; every axis is a config entry of its own.

    Args:
        folder: the run's folder; W&B's files go below it.
        config: the resolved config.
        record: the run's record: `name`, `table`, `row`, `seed`, `axes`, `reference`, `git_commit`, `environment`,
            `wandb_id`.

    Raises:
        UserError: if `WANDB_LOG_MODEL` has an unknown value.
    """
    if os.environ.get("WANDB_MODE") == "disabled":
        return None
    # hide W&B's greetings, and its warning about Lightning's calls; the message below has what matters
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    keeps_model = _keeps_model()
    reason = offline_reason()
    if reason:
        upload = f"beyondpixel sync {folder.path}"
        rank_zero_info(f"W&B: {reason}, so logging offline; upload later with: {upload}")
    folder.path.mkdir(parents=True, exist_ok=True)
    return AxesLogger(
        keeps_model=keeps_model,
        **run_arguments(config, record),
        save_dir=str(folder.path),
        mode="offline" if reason else "online",
        settings=wandb.Settings(
            console="off",
            init_timeout=SECONDS_TO_BEGIN,
            finish_timeout=SECONDS_TO_UPLOAD if keeps_model else SECONDS_TO_END,
            finish_timeout_raises=True,
            x_save_requirements=False,  # the config has them
        ),
    )


def finish_wandb(exit_code: int = 0) -> None:
    """Close W&B's run, if there is one, its process is alive, and its disk is not full."""
    import wandb

    folder = None if wandb.run is None else Path(wandb.run.dir).parent
    try:
        wandb.finish(exit_code=exit_code)
    except TimeoutError:
        if folder is not None:
            (folder / UNDELIVERED).touch()
            later = f"upload later with: beyondpixel sync {folder.parent.parent}"
            rank_zero_warn(f"W&B's server does not answer, or is too slow for what is left to upload; {later}")
    except OSError:
        return
    else:
        if folder is not None and not exit_code:
            shutil.rmtree(folder / "logs", ignore_errors=True)  # three files about W&B itself
