"""Random numbers of training steps: equal for an equal step, different for any other."""

import itertools
from types import SimpleNamespace
from typing import Any

import torch

from beyondpixel.experiments.step_seeds import StepSeeds


def numbers(seed: int, rank: int, epoch: int, batch: int) -> tuple[float, ...]:
    """What a step draws, whatever was drawn before."""
    trainer: Any = SimpleNamespace(global_rank=rank, current_epoch=epoch)
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.rand(3)
        StepSeeds(seed).on_train_batch_start(trainer, module, None, batch)
        return tuple(torch.rand(4).tolist())


def test_a_step_has_its_own_numbers_again() -> None:
    assert numbers(1, 0, 2, 3) == numbers(1, 0, 2, 3)


def test_every_seed_process_epoch_and_batch_has_others() -> None:
    drawn = [numbers(*step) for step in itertools.product((1, 2), (0, 1), (0, 1), (0, 1))]
    assert len(set(drawn)) == 16
