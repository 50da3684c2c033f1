"""Random numbers of a training step that depend only on seed, step and process."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback


class StepSeeds(Callback):
    """Seed torch before each training step, so that dropout after a resume is the same as without interruption.

    Lightning's checkpoints hold no generator states, and those of several processes and devices would have to be
    gathered. The data modules do the same for order and augmentation.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the CPU's generator and that of the module's device."""
        # with accumulated gradients several batches make one step, so batches are counted
        entropy = [self.seed, trainer.global_rank, trainer.current_epoch, batch_idx]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        # torch.manual_seed would queue a call for CUDA, with a stack trace, at each step on a machine without it
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)
