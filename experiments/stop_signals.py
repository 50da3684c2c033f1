"""Signals that ask a run to stop, outside and inside its training."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from pytorch_lightning.trainer.states import TrainerFn

from beyondpixel.experiments.errors import STOPPED, Stopped
from beyondpixel.experiments.run.folder import RunFolder, Status
from beyondpixel.experiments.run.processes import KILLS, known_signals

SECONDS_TO_NOTICE = 5.0
Handler = Callable[[int, FrameType | None], Any]


_started: list[subprocess.Popen[Any]] = []  # the other processes of this one's run
# Ctrl-C; what submitit lets SLURM send before the time limit
SIGNALS = (*known_signals("SIGINT", "SIGUSR2"), *KILLS)


def handle(signals: tuple[signal.Signals, ...], handler: Handler) -> None:
    """Set a handler, but leave hang-ups alone where they are ignored, as under nohup."""
    for number in signals:
        if number not in known_signals("SIGHUP") or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def is_fetching(frame: FrameType | None) -> bool:
    """Whether the code that a signal interrupted was waiting for a batch."""
    while frame is not None:
        if frame.f_code is _DataFetcher.__next__.__code__:
            return True
        frame = frame.f_back
    return False


class StopAtOnce(Callback):
    """Ends a test, or a validation outside a training, where a signal meets it: it is done again as a whole.

    Ctrl-C ends it without this. A cluster's warning of the time limit is left to submitit, which requeues the job.

    A process that waits for another one of its run notices no signal, and the other may wait for data. A thread
    notices it, and ends the process, where it has not gone on for some seconds.

    Args:
        folder: of the run that is trained, which notes that it was stopped; None notes nothing.
    """

    def __init__(self, folder: RunFolder | None) -> None:
        self.folder = folder
        self._has_noticed = False
        self._numbers: int | None = None  # where numbers of signals are written to, in a stage on several processes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A later Trainer of a process, such as that of an evaluation, is to end what the first one has started."""
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            _started.extend(process for process in launcher.procs if process not in _started)
            launcher.procs = list(_started)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning, which waits for the end of the next training step."""
        self._take_over(trainer)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The training answers signals in another way."""
        self._stop_watching()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning, which would go on to the end."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._take_over(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning, which would go on to the end."""
        self._take_over(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The stage is over, and so is what answers signals in it."""
        self._stop_watching()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the other processes along, of which one may wait for data as well."""
        if isinstance(exception, Stopped) and self._numbers is not None:
            end_other_processes(trainer, signal.SIGTERM)

    def _take_over(self, trainer: Trainer) -> None:
        handle(KILLS, self._stop)
        if trainer.world_size > 1 and self._numbers is None:
            numbers, self._numbers = os.pipe()
            os.set_blocking(self._numbers, False)
            signal.set_wakeup_fd(self._numbers, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(trainer, numbers), daemon=True).start()

    def _stop_watching(self) -> None:
        if self._numbers is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._numbers)  # the thread reads nothing more, and ends
            self._numbers = None

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._has_noticed = True
        raise Stopped(signal.Signals(number).name)

    def _watch(self, trainer: Trainer, numbers: int) -> None:
        while number := os.read(numbers, 1):
            if number[0] in KILLS:
                time.sleep(SECONDS_TO_NOTICE)
                if not self._has_noticed and self._numbers is not None:
                    self._end(trainer)
        os.close(numbers)

    def _end(self, trainer: Trainer) -> None:
        if self.folder is not None and trainer.is_global_zero:
            self.folder.update_state(status=Status.STOPPED, error=None)
        end_other_processes(trainer, known_signals("SIGKILL", "SIGTERM")[0])
        os._exit(STOPPED)


def end_other_processes(trainer: Trainer, number: signal.Signals) -> None:
    """Send a signal to those that this one has started; elsewhere each gets the signals of its own."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(number)
