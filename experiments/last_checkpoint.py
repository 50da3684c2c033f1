"""Checkpoints between two training steps, from which a resumed run continues exactly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info

from beyondpixel.datamodules.datasets.errors import DataError
from beyondpixel.experiments.errors import OtherProcessError, Stopped
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.stop_signals import SIGNALS, end_other_processes, handle

SECONDS_BETWEEN_CHECKS = 1.0
# A process that has to stop waits this long for the others, which may be waiting for data. It polls them, since a
# blocking wait of torch.distributed handles no signals.
SECONDS_TO_WAIT_FOR_OTHERS = 4.0
SECONDS_BETWEEN_POLLS = 1e-4
# the time at which SLURM ends this job
END_TIME = "SLURM_JOB_END_TIME"
# the next step and checkpoint may be slower than the slowest so far
MARGIN = 2.0
# Batch progress that makes Lightning repeat an interrupted validation, as if it was interrupted in its first batch.
BEFORE_VALIDATION = {
    "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
    "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
    "is_last_batch": False,
}


class LastCheckpoint(Callback):
    """Save a checkpoint after each epoch, at the end, and when the training has to stop.

    A checkpoint has the state between two steps: one is finished and logged, and the next has not begun. Lightning's
    own checkpoint of an epoch resumes with the data of the epoch after next if the training is limited by steps, and
    its checkpoint on an exception has BatchNorm statistics of a batch on which the resumed run trains again.

    The callback saves the state and raises `Stopped`

    - after a signal: at the end of the step, or between two batches of a validation, which a resumed run repeats from
      the start. A process that waits for data stops waiting. A second Ctrl-C stops at once, without a checkpoint.
    - when SLURM would end the job before another step and a checkpoint are done, both twice as slow as the slowest so
      far.

    All processes of a run stop at the same step if any of them has to; if one of them waits for data, the others stop
    waiting for it after some seconds. The state is also saved when data can no longer be read, such as after a worker
    was killed, or when another process has ended.

    The second newest checkpoint is kept until the training ends, in case the newest is damaged.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._stop_signal: signal.Signals | None = None
        self._stop_time = 0.0
        self._detached = False  # whether it stopped waiting for the run's other processes
        self._logged_steps = 0
        self._resumed = False
        self._validation_interrupted = False
        self._batch_began: float | None = None  # start of the current batch
        self._slowest_batch = 0.0
        self._slowest_save = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The number that the next step is logged with, and whether an interrupted validation comes first."""
        return {"logged_steps": self._logged_steps, "left_validation": self._validation_interrupted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        self._logged_steps = state_dict["logged_steps"]
        self._validation_interrupted = state_dict.get("left_validation", False)
        self._resumed = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers; Lightning restores the previous ones when the trainer ends."""
        # Not earlier: these must replace Lightning's own handlers, one of which talks to the other processes from
        # inside the handler, and another of which asks SLURM for a second requeue.
        handle(SIGNALS, self._request_stop)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save or stop between two steps."""
        self._number_steps(trainer)
        self._stop_if_requested(trainer)
        # with a time limit, an early checkpoint measures how long saving takes
        if trainer.global_step > 0 and (batch_idx == 0 or (END_TIME in os.environ and not self._slowest_save)):
            self._save(trainer)
        self._batch_began = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the step count if a resumed run starts with its interrupted validation."""
        if _is_within_training(trainer):
            if self._validation_interrupted:
                steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
                steps.ready += 1
                steps.completed += 1
                self._validation_interrupted = False
            self._number_steps(trainer)
            self._batch_began = None

    def on_validation_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop between two batches of a validation."""
        if _is_within_training(trainer):
            self._stop_if_requested(trainer)
            self._batch_began = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the trained model, which the papers evaluate."""
        self._set_check_timer(0)
        self._logged_steps = trainer.fit_loop.epoch_loop._batches_that_stepped
        self._save(trainer)
        if trainer.is_global_zero:
            self.folder.previous_checkpoint.unlink(missing_ok=True)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal came after the start of the last step."""
        if self._stop_signal is not None:
            raise Stopped(self._stop_signal.name)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the state of the training if it stops between two steps."""
        self._set_check_timer(0)
        if isinstance(exception, Stopped | DataError | OtherProcessError):
            if not isinstance(exception, Stopped):
                self._detached = True
            if self._detached:
                end_other_processes(trainer, signal.SIGTERM)
            for worker in multiprocessing.active_children():
                if worker.daemon:  # a data loader's, which may hang; torch would wait seconds for each
                    worker.terminate()
            progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
            within = _is_within_training(trainer) and progress.started == progress.completed
            if within and trainer.global_step > 0 and not self._resumed:
                self._logged_steps = trainer.fit_loop.epoch_loop._batches_that_stepped
                self._validation_interrupted = bool(trainer.validating)
                self._save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make a resumed run start with its interrupted validation."""
        if self._validation_interrupted:
            loops = checkpoint["loops"]["fit_loop"]
            loops["epoch_loop.val_loop.batch_progress"] = BEFORE_VALIDATION
            # Lightning would end a run with all steps done before validating; `on_validation_start` adds the last one
            steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
            steps["ready"] -= 1
            steps["completed"] -= 1

    def _number_steps(self, trainer: Trainer) -> None:
        loop = trainer.fit_loop.epoch_loop
        if self._resumed:  # Lightning counts the iteration in which its loops restore their progress as a step
            loop._batches_that_stepped = self._logged_steps
            self._resumed = False
        self._logged_steps = loop._batches_that_stepped

    def _stop_if_requested(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if self._batch_began is not None:
            self._slowest_batch = max(self._slowest_batch, now - self._batch_began)
        left = float(os.environ.get(END_TIME, "inf")) - time.time()
        late = self._stop_signal is None and left < MARGIN * (self._slowest_batch + self._slowest_save)
        if late:
            rank_zero_info(f"SLURM ends this job in {left:.0f} seconds: stopping, with a checkpoint")
        if self._any_has_to_stop(trainer, late or self._stop_signal is not None):
            raise Stopped((self._stop_signal or signal.SIGTERM).name)

    def _any_has_to_stop(self, trainer: Trainer, wanted: bool) -> bool:
        """Whether any process has to stop; stops without the others if one of them does not answer in time."""
        if trainer.world_size == 1:
            return wanted
        answer = torch.tensor(int(wanted), device=trainer.strategy.root_device)
        work = torch.distributed.all_reduce(answer, op=torch.distributed.ReduceOp.MAX, async_op=True)
        try:
            while not work.is_completed():
                if self._stop_signal is not None and time.monotonic() - self._stop_time > SECONDS_TO_WAIT_FOR_OTHERS:
                    self._stop_detached(self._stop_signal)
                time.sleep(SECONDS_BETWEEN_POLLS)
            work.wait()
        except RuntimeError as error:
            if self._stop_signal is None:
                raise OtherProcessError("another process of this run has ended; its own message says why") from error
            self._stop_detached(self._stop_signal)
        return bool(answer)

    def _stop_detached(self, stop_signal: signal.Signals) -> None:
        self._detached = True
        raise Stopped(stop_signal.name)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        began = time.monotonic()
        file = self.folder.last_checkpoint
        if trainer.is_global_zero and file.exists():
            file.replace(self.folder.previous_checkpoint)  # to resume from if the next lines crash
        # like `Trainer.save_checkpoint`, which would wait for processes that have ended
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        trainer.strategy.save_checkpoint(checkpoint, file)
        if not self._detached:
            trainer.strategy.barrier()
        self._slowest_save = max(self._slowest_save, time.monotonic() - began)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._stop_signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop_signal, self._stop_time = signal.Signals(number), time.monotonic()
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        rank_zero_info(f"{self._stop_signal.name}: stopping after this step, with a checkpoint{again}")
        self._set_check_timer(SECONDS_BETWEEN_CHECKS)

    def _set_check_timer(self, seconds: float) -> None:
        """Check every `seconds` whether the process waits for data; 0 stops the checks."""
        if hasattr(signal, "setitimer"):
            if seconds:
                signal.signal(signal.SIGALRM, self._check_waiting)
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)

    def _check_waiting(self, number: int, frame: FrameType | None) -> None:
        interrupted = (one.f_code for one, _ in traceback.walk_stack(frame))
        if self._stop_signal is not None and _DataFetcher.__next__.__code__ in interrupted:
            self._stop_detached(self._stop_signal)


def _is_within_training(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
