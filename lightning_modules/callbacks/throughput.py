"""Training throughput and peak memory."""

import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

STATUS = Path("/proc/self/status")


class Throughput(Callback):
    """Logs `train/images_per_s` over all processes, and `train/peak_memory_mb`, in MiB.

    Throughput is the mean over the last steps. It includes data loading, but not validation, checkpoints between
    epochs or the first, slow steps. Peak memory is PyTorch's peak allocation since the start of the training on CUDA,
    and the peak resident memory of the process on a CPU, on Linux only.

    Args:
        warmup_steps: steps at the beginning of `fit` that are not counted.
        window: number of steps to average over.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> trainer = Trainer(callbacks=[Throughput(warmup_steps=10)], logger=False, accelerator="cpu")
    """

    def __init__(self, warmup_steps: int = 5, window: int = 50) -> None:
        if warmup_steps < 0 or window < 1:
            raise ValueError(f"warmup_steps must be 0 or more and window 1 or more, got {warmup_steps} and {window}")
        self.warmup_steps = warmup_steps
        self._steps: deque[tuple[int, float]] = deque(maxlen=window)  # images, seconds
        self._seen = 0
        self._previous: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._steps.clear()
        self._seen = 0
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._previous = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._previous = None

    def on_train_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, previous = time.perf_counter(), self._previous
        self._previous = now
        self._seen += 1
        if previous is not None and self._seen > self.warmup_steps:
            self._steps.append((len(batch["image"]), now - previous))
        if self._steps:
            images, seconds = (sum(values) for values in zip(*self._steps, strict=True))
            pl_module.log("train/images_per_s", images * trainer.world_size / seconds)
        if pl_module.device.type == "cuda":
            pl_module.log("train/peak_memory_mb", torch.cuda.max_memory_allocated(pl_module.device) / 2**20)
        elif STATUS.exists():
            # the other interface, getrusage, reports the peak of the parent process if that is higher
            (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
            pl_module.log("train/peak_memory_mb", int(line.split()[1]) / 2**10)
