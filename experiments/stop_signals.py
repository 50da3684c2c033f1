"""Signals that ask a run to stop, outside and inside its training."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.trainer.states import TrainerFn

from beyondpixel.experiments.errors import Stopped
from beyondpixel.experiments.run.processes import KILLS, known_signals

Handler = Callable[[int, FrameType | None], Any]


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
    """

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning, which waits for the end of the next training step."""
        handle(KILLS, _stop)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning, which would go on to the end."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            handle(KILLS, _stop)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning, which would go on to the end."""
        handle(KILLS, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number))
