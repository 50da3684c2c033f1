"""Handling of signals that stop a run, outside and inside its training."""

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
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from pytorch_lightning.trainer.states import TrainerFn

from beyondpixel.experiments.errors import STOPPED, Stopped
from beyondpixel.experiments.run.folder import RunFolder, Status
from beyondpixel.experiments.run.processes import KILLS, known_signals

SECONDS_TO_HANDLE = 5.0
Handler = Callable[[int, FrameType | None], Any]


_started: list[subprocess.Popen[Any]] = []  # other processes of the run, started by this one
# Ctrl-C; the signal that submitit makes SLURM send before the time limit
SIGNALS = (*known_signals("SIGINT", "SIGUSR2"), *KILLS)


def handle(signals: tuple[signal.Signals, ...], handler: Handler) -> None:
    """Set a handler, except for a hang-up signal that is ignored, as under nohup."""
    for number in signals:
        if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


class StopAtOnce(Callback):
    """Stop a test, or a validation outside training, at once on a signal: it is repeated as a whole.

    Ctrl-C stops it without this callback. A cluster's time limit warning is left to submitit, which requeues the job.

    A process that waits for another process of its run handles no signal, and the other may wait for data. A thread
    reads the signal, and ends the process if it has not handled the signal after some seconds.

    Args:
        folder: the folder of the trained run, whose state is set to stopped; None records nothing.
    """

    def __init__(self, folder: RunFolder | None) -> None:
        self.folder = folder
        self._has_handled = False
        self._wakeup_fd: int | None = None  # Python writes each signal's number to it, in a stage on several processes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make a later Trainer, such as that of an evaluation, end the processes that the first one started."""
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            _started.extend(process for process in launcher.procs if process not in _started)
            launcher.procs = list(_started)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers, which wait for the end of the next training step."""
        self._install_handlers(trainer)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching; `LastCheckpoint` handles signals during training."""
        self._stop_watching()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers, which would continue to the end."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._install_handlers(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers, which would continue to the end."""
        self._install_handlers(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching at the end of the stage."""
        self._stop_watching()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the other processes, too, since one of them may wait for data as well."""
        if isinstance(exception, Stopped) and self._wakeup_fd is not None:
            end_other_processes(trainer, signal.SIGTERM)

    def _install_handlers(self, trainer: Trainer) -> None:
        handle(KILLS, self._stop)
        if trainer.world_size > 1 and self._wakeup_fd is None:
            read_fd, self._wakeup_fd = os.pipe()
            os.set_blocking(self._wakeup_fd, False)
            signal.set_wakeup_fd(self._wakeup_fd, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(trainer, read_fd), daemon=True).start()

    def _stop_watching(self) -> None:
        if self._wakeup_fd is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._wakeup_fd)  # ends the thread, which then reads the end of the pipe
            self._wakeup_fd = None

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._has_handled = True
        raise Stopped(signal.Signals(number).name)

    def _watch(self, trainer: Trainer, read_fd: int) -> None:
        while number := os.read(read_fd, 1):
            if number[0] in KILLS:
                time.sleep(SECONDS_TO_HANDLE)
                if not self._has_handled and self._wakeup_fd is not None:
                    self._end(trainer)
        os.close(read_fd)

    def _end(self, trainer: Trainer) -> None:
        if self.folder is not None and trainer.is_global_zero:
            self.folder.update_state(status=Status.STOPPED, error=None)
        end_other_processes(trainer, known_signals("SIGKILL", "SIGTERM")[0])
        os._exit(STOPPED)


def end_other_processes(trainer: Trainer, number: signal.Signals) -> None:
    """Send a signal to the processes that this one started; other launchers signal each process themselves."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(number)
