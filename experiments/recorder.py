"""Config, record and state of a run, kept up to date while it trains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from beyondpixel.experiments.axes import axes_of
from beyondpixel.experiments.errors import Stopped, UserError
from beyondpixel.experiments.run.folder import RunFolder, Status, write_atomically
from beyondpixel.experiments.run.processes import process_rank
from beyondpixel.experiments.run.provenance import describe_environment, device_name, git_commit, uncommitted_changes
from beyondpixel.experiments.wandb_arguments import new_wandb_id

SECONDS_BETWEEN_STATES = 5.0


def identify(folder: RunFolder, config: Mapping[str, Any], *, resumed: bool = False) -> dict[str, Any]:
    """Write the config of a run, and complete the record (run.json) that the launcher wrote.

    A resumed run keeps its W&B id, so call this before W&B starts.

    Args:
        folder: the run's folder; a launched run's record already holds `name`, `table`, `row` and `reference`.
        config: the resolved config.
        resumed: whether the run is resumed; the record then has the commits of all its attempts, joined by commas.
    """
    known = folder.record
    name = folder.path.name
    earlier = (known.get("git_commit") if resumed else None) or ""
    record = {
        "name": name,
        "table": folder.path.absolute().parent.name,
        "row": name,
        "reference": {},
        "evaluations": [],
        "wandb_id": new_wandb_id(),
        **known,
        "seed": config["seed_everything"],
        "axes": axes_of(config),
        "git_commit": ", ".join(dict.fromkeys(filter(None, [*earlier.split(", "), git_commit()]))) or None,
        "environment": describe_environment(),
    }
    if process_rank() == 0:
        folder.config = dict(config)
        folder.record = record
        if changes := uncommitted_changes():
            write_atomically(folder.changes_file, changes)
    return record


class RunRecorder(Callback):
    """Write record and state of a run.

    Args:
        folder: the run's folder.
        record: from `identify`.
    """

    def __init__(self, folder: RunFolder, record: dict[str, Any]) -> None:
        self.folder = folder
        self.record = record
        self._written = 0.0
        self._metrics_size: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """The bytes of metrics logged when a checkpoint is saved, and the run's W&B id."""
        return {"metrics_size": self.folder.metrics_size, "wandb_id": self.record["wandb_id"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the bytes until the training starts; 0 for a run that starts from another run's checkpoint."""
        own = state_dict.get("wandb_id", self.record["wandb_id"]) == self.record["wandb_id"]
        self._metrics_size = state_dict["metrics_size"] if own else 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add to the record what depends on the trainer: device, data, and each process's share of a batch."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        self.record["environment"]["device"] = device_name(trainer.strategy.root_device)
        data: Any = getattr(trainer, "datamodule", None)
        # of the training images, independent of their folder
        fingerprint = data.fingerprint(data.train_split) if callable(getattr(data, "fingerprint", None)) else None
        earlier = (self.record.get("data") or {}).get("fingerprint")
        if trainer.ckpt_path and earlier not in (None, fingerprint):
            raise UserError(
                f"{self.folder.path} was started on other images or masks (fingerprint {earlier}, now {fingerprint}); "
                "resume it with its original data.root, or add --overwrite to start from scratch"
            )
        self.record["data"] = {
            "fingerprint": fingerprint,
            "batch_size": getattr(data, "batch_size", None),
            "processes": trainer.world_size,
            "batch_size_per_process": getattr(data, "batch_size_per_process", None),
        }
        self.folder.record = self.record

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the metrics after a resumed run's checkpoint, which it logs again, and set its state to running."""
        if trainer.is_global_zero:
            if self._metrics_size is not None or not trainer.global_step:
                self.folder.cut_metrics(self._metrics_size or 0)
            self._metrics_size = None
            max_steps = int(trainer.estimated_stepping_batches)
            self.folder.update_state(status=Status.RUNNING, step=trainer.global_step, max_steps=max_steps, error=None)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Write the progress to the run's state every few seconds."""
        if trainer.is_global_zero and time.monotonic() - self._written > SECONDS_BETWEEN_STATES:
            self._written = time.monotonic()
            self.folder.update_state(step=trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Set the state to stopped, from which a run can be resumed, or to failed, with the error."""
        if trainer.is_global_zero:
            stopped = isinstance(exception, KeyboardInterrupt | Stopped | SystemExit)
            error = None if stopped else f"{type(exception).__name__}: {exception}"
            status = Status.STOPPED if stopped else Status.FAILED
            # if the disk is full, the original exception is the one to show
            with nullcontext() if stopped else suppress(OSError):
                self.folder.update_state(status=status, step=trainer.global_step, error=error)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the state to trained, but not yet tested; with fast_dev_run to new, since there is no checkpoint."""
        if trainer.is_global_zero:
            if self._metrics_size is not None:  # already trained, but killed during its test, which logs again
                self.folder.cut_metrics(self._metrics_size)
            status = Status.NEW if trainer.fast_dev_run else Status.TRAINED  # type: ignore[attr-defined]
            self.folder.update_state(status=status, step=trainer.global_step)
