"""Checkpoints between two training steps, from which a resumed run continues exactly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info

from beyondpixel.datamodules.datasets.errors import DataError
from beyondpixel.experiments.errors import OtherProcessError, Stopped
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.stop_signals import SIGNALS, end_other_processes, handle, is_fetching

SECONDS_BETWEEN_LOOKS = 1.0
# A process that was asked to stop waits so long for the others, which may wait for data. Between their answers it looks
# for signals, of which none is noticed in a wait of the library's own.
SECONDS_FOR_THE_OTHERS = 4.0
SECONDS_BETWEEN_ANSWERS = 1e-4
# the time at which SLURM ends this job
END_TIME = "SLURM_JOB_END_TIME"
# the next step and checkpoint may be slower than the slowest so far
MARGIN = 2.0
# A validation that was left begins anew: to Lightning, it was left in its first batch. Stages of a batch's progress.
BEFORE_VALIDATION = {
    "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
    "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
    "is_last_batch": False,
}


class LastCheckpoint(Callback):
    """Saves after each pass over the data, at the end, and when the training has to stop.

    Always the state between two steps, when one is finished and logged and the next has not begun. What Lightning saves
    at the end of an epoch resumes with the data of the epoch after next if the training is limited by steps, and what
    it saves on an exception holds statistics of BatchNorm that saw a batch which the resumed run trains on again.

    `Stopped` is raised, and the state saved,

    - when a signal has asked for it: after the step, or between two batches of a validation, which a resumed run begins
      anew. A process that waits for data is ended in its wait. A second Ctrl-C stops at once, with no checkpoint.
    - when SLURM would end the job before another step and a checkpoint are done, both twice as slow as the slowest so
      far.

    On several processes all stop at the same step, whichever of them has to; where one of them waits for data, the
    others part from it after some seconds. Where data cannot be had any more, such as when a worker was killed, or
    another process has ended, the state is saved as well.

    The checkpoint before the newest is kept until the training ends, for the case that the newest is damaged.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._asked: signal.Signals | None = None
        self._asked_at = 0.0
        self._alone = True
        self._parted = False  # from the other processes of the run
        self._logged_steps = 0
        self._resumed = False
        self._left_validation = False
        self._began: float | None = None  # the batch that is going on
        self._slowest_batch = 0.0
        self._slowest_save = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The number that the next step is logged with, and whether its validation is to come first."""
        return {"logged_steps": self._logged_steps, "left_validation": self._left_validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember both."""
        self._logged_steps = state_dict["logged_steps"]
        self._left_validation = state_dict.get("left_validation", False)
        self._resumed = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over; Lightning gives them back to their former owners when the trainer ends."""
        # Not earlier: Lightning has by now set its own handlers, of which one talks to the other processes from inside
        # the handler and another asks SLURM for a second requeue.
        self._asked = None
        self._parted = False
        self._alone = trainer.world_size == 1
        handle(SIGNALS, self._ask)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The place to save, and to stop."""
        self._number_steps(trainer)
        self._stop_if_asked(trainer)
        # where time is limited, an early checkpoint tells how long one takes
        if trainer.global_step > 0 and (batch_idx == 0 or (END_TIME in os.environ and not self._slowest_save)):
            self._save(trainer)
        self._began = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run may begin here."""
        if _is_within_training(trainer):
            if self._left_validation:
                steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
                steps.ready += 1
                steps.completed += 1
                self._left_validation = False
            self._number_steps(trainer)
            self._began = None

    def on_validation_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """The place to stop."""
        if _is_within_training(trainer):
            self._stop_if_asked(trainer)
            self._began = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The trained model, which the papers evaluate."""
        self._look_again(0)
        self._logged_steps = trainer.fit_loop.epoch_loop._batches_that_stepped
        self._save(trainer)
        if trainer.is_global_zero:
            self.folder.previous_checkpoint.unlink(missing_ok=True)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A signal after the begin of the last step stops here."""
        if self._asked is not None:
            raise Stopped(self._asked.name)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what the training has come to, if it has to stop between two steps."""
        self._look_again(0)
        if isinstance(exception, Stopped | DataError | OtherProcessError):
            if not isinstance(exception, Stopped):
                self._parted = True
            if self._parted:
                end_other_processes(trainer, signal.SIGTERM)
            for worker in multiprocessing.active_children():
                if worker.daemon:  # it reads data, and may be stuck; torch would wait seconds for each
                    worker.terminate()
            progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
            within = _is_within_training(trainer) and progress.started == progress.completed
            if within and trainer.global_step > 0 and not self._resumed:
                self._logged_steps = trainer.fit_loop.epoch_loop._batches_that_stepped
                self._left_validation = bool(trainer.validating)
                self._save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a run that left its validation begin with it."""
        if self._left_validation:
            loops = checkpoint["loops"]["fit_loop"]
            loops["epoch_loop.val_loop.batch_progress"] = BEFORE_VALIDATION
            # Lightning would end a run that has made all its steps before it validates; it counts the last one then
            steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
            steps["ready"] -= 1
            steps["completed"] -= 1

    def _number_steps(self, trainer: Trainer) -> None:
        loop = trainer.fit_loop.epoch_loop
        if self._resumed:  # Lightning counts the turn in which its loops find out where they were as a step
            loop._batches_that_stepped = self._logged_steps
            self._resumed = False
        self._logged_steps = loop._batches_that_stepped

    def _stop_if_asked(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if self._began is not None:
            self._slowest_batch = max(self._slowest_batch, now - self._began)
        left = float(os.environ.get(END_TIME, "inf")) - time.time()
        late = self._asked is None and left < MARGIN * (self._slowest_batch + self._slowest_save)
        if late:
            rank_zero_info(f"SLURM ends this job in {left:.0f} seconds: stopping, with a checkpoint")
        if self._is_wanted_by_any(trainer, late or self._asked is not None):
            raise Stopped((self._asked or signal.SIGTERM).name)

    def _is_wanted_by_any(self, trainer: Trainer, wanted: bool) -> bool:
        """Whether any process has to stop; parts from the others if one of them does not say in time."""
        if self._alone:
            return wanted
        answer = torch.tensor(int(wanted), device=trainer.strategy.root_device)
        work = torch.distributed.all_reduce(answer, op=torch.distributed.ReduceOp.MAX, async_op=True)
        try:
            while not work.is_completed():
                if self._asked is not None and time.monotonic() - self._asked_at > SECONDS_FOR_THE_OTHERS:
                    self._part(self._asked)
                time.sleep(SECONDS_BETWEEN_ANSWERS)
            work.wait()
        except RuntimeError as error:
            if self._asked is None:
                raise OtherProcessError("another process of this run has ended; its own message says why") from error
            self._part(self._asked)
        return bool(answer)

    def _part(self, asked: signal.Signals) -> None:
        self._parted = True
        raise Stopped(asked.name)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        began = time.monotonic()
        file = self.folder.last_checkpoint
        if trainer.is_global_zero and file.exists():
            file.replace(self.folder.previous_checkpoint)  # a crash before the next line leaves this to resume from
        # as `Trainer.save_checkpoint`, which would wait for processes that are no longer there
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        trainer.strategy.save_checkpoint(checkpoint, file)
        if not self._parted:
            trainer.strategy.barrier()
        self._slowest_save = max(self._slowest_save, time.monotonic() - began)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._asked == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked, self._asked_at = signal.Signals(number), time.monotonic()
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        rank_zero_info(f"{self._asked.name}: stopping after this step, with a checkpoint{again}")
        self._look_again(SECONDS_BETWEEN_LOOKS)

    def _look_again(self, seconds: float) -> None:
        """Look every so often whether the process waits for data; 0 ends that."""
        if hasattr(signal, "setitimer"):
            if seconds:
                signal.signal(signal.SIGALRM, self._look)
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)

    def _look(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None and is_fetching(frame):
            self._part(self._asked)


def _is_within_training(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
