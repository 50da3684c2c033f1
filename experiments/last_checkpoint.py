"""Checkpoints between two training steps, from which a resumed run continues exactly."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info

from beyondpixel.experiments.errors import Stopped

# Ctrl-C; `kill` and a cluster's preemption; what submitit lets SLURM send before the time limit; what users let SLURM
# send by --signal; the end of a remote session. Windows has the first two.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)


class LastCheckpoint(Callback):
    """Saves after each pass over the data, at the end, and, before it raises `Stopped`, when a signal asks to stop.

    Always between two steps, when one is finished and logged and the next has not begun. What Lightning saves at the
    end of an epoch resumes with the data of the epoch after next if the training is limited by steps, and what it
    saves on an exception holds statistics of BatchNorm that saw a batch which the resumed run trains on again.

    A stop during a validation waits for its end: half a validation's scores cannot be resumed. On several processes all
    stop at the same step, whichever of them was signaled. A second Ctrl-C stops at once.

    The checkpoint before the newest is kept until the training ends, for the case that the newest is damaged.

    Args:
        file: the checkpoint.
        previous: where the one before is kept.
    """

    def __init__(self, file: Path, previous: Path) -> None:
        self.file = file
        self.previous = previous
        self._asked: signal.Signals | None = None
        self._logged_steps = 0
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """The number that the next step is logged with."""
        return {"logged_steps": self._logged_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember that number."""
        self._logged_steps = state_dict["logged_steps"]
        self._resumed = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over; Lightning gives them back to their former owners when the trainer ends."""
        # Not earlier: Lightning has by now set its own handlers, of which one talks to the other processes from inside
        # the handler and another asks SLURM for a second requeue.
        self._asked = None
        for number in SIGNALS:
            signal.signal(number, self._ask)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The place to save, and to stop."""
        loop = trainer.fit_loop.epoch_loop
        if self._resumed:  # Lightning counts the turn in which its loops find out where they were as a step
            loop._batches_that_stepped = self._logged_steps
            self._resumed = False
        self._logged_steps = loop._batches_that_stepped
        stop = trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False)
        if stop or (batch_idx == 0 and trainer.global_step > 0):
            self._save(trainer)
        if stop:
            raise Stopped(self._asked or signal.SIGTERM)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The trained model, which the papers evaluate."""
        self._logged_steps = trainer.fit_loop.epoch_loop._batches_that_stepped
        self._save(trainer)
        if trainer.is_global_zero:
            self.previous.unlink(missing_ok=True)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.is_global_zero and self.file.exists():
            self.file.replace(self.previous)  # a crash before the next line leaves this one to resume from
        trainer.save_checkpoint(self.file, weights_only=False)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._asked == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = signal.Signals(number)
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        rank_zero_info(f"{self._asked.name}: stopping after this step, with a checkpoint{again}")
