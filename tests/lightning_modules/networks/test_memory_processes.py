"""Real processes with a part of the batch each get the memory that one process gets from all of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from beyondpixel.lightning_modules.networks import FeatureMemory, StatisticsMemory

CLASSES, CHANNELS, IMAGES = 6, 5, 6
Memory = FeatureMemory | StatisticsMemory
VARIANTS: dict[str, tuple[Callable[[], Memory], dict[str, Any]]] = {
    f"{strategy}, {slots} slots, {initialization}": (
        lambda slots=slots, initialization=initialization: FeatureMemory(  # type: ignore[misc]
            CLASSES, CHANNELS, slots, initialization=initialization
        ),
        {"momentum": 0.6, "strategy": strategy},
    )
    for strategy, slots in (("cosine", 1), ("cosine", 2), ("mean", 1))
    for initialization in ("mean", "random_pixel")
} | {"statistics": (lambda: StatisticsMemory(CLASSES, CHANNELS), {"momentum": 0.1})}

# Which images each process has: unequal shares, and rank 1 of three has one that is void altogether.
SHARES = {2: ([0, 1, 2, 3, 4], [5]), 3: ([0, 1, 2], [3], [4, 5])}


def make_steps() -> list[tuple[Tensor, Tensor]]:
    """Batches in which classes come and go between images, some are on one image alone, and image 3 is void."""
    generator = torch.Generator().manual_seed(0)
    steps = []
    for step in range(4):
        features = torch.randn(IMAGES, CHANNELS, 4, 5, generator=generator) + 0.5
        target = torch.randint(3, (IMAGES, 19, 23), generator=generator)
        target[:, :5] = 255
        target[5, 9:, :7] = 3  # on the last rank alone
        target[0, 9:, :9] = 4 if step > 0 else 255  # on the first alone, and first seen in the second step
        target[2, 18, 22] = target[4, 0, 0] = 5  # a pixel each on two images
        target[3] = 255
        if step == 2:
            target[5] = 255  # rank 1 of two has nothing
        steps.append((features, target))
    return steps


def updated(variant: str, images: list[int]) -> list[dict[str, Tensor]]:
    """State after each step."""
    build, arguments = VARIANTS[variant]
    memory = build()
    states = []
    for features, target in make_steps():
        memory.update(features[images], target[images], **arguments)
        states.append({name: value.clone() for name, value in memory.state_dict().items()})
    return states


def _in_process(rank: int, folder: str, processes: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    states = {variant: updated(variant, SHARES[processes][rank]) for variant in VARIANTS}
    torch.save(states, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_get_what_one_gets_from_the_whole_batch(processes: int, tmp_path: Path) -> None:
    # forked processes need not import everything again
    mp.start_processes(_in_process, args=(str(tmp_path), processes), nprocs=processes, start_method="fork")
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    for variant in VARIANTS:
        whole = updated(variant, list(range(IMAGES)))
        for step, expected in enumerate(whole):
            for rank in range(processes):
                state = results[rank][variant][step]
                message = f"{variant}, step {step}, rank {rank}"
                torch.testing.assert_close(
                    state["memory"], expected["memory"], rtol=0, atol=1e-6, msg=lambda text, m=message: f"{m}: {text}"
                )
                assert torch.equal(state["seen"], expected["seen"]), message
                # to the last bit, or the processes would drift apart
                assert torch.equal(state["memory"], results[0][variant][step]["memory"]), message


def _with_a_wrong_label(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    memory = FeatureMemory(CLASSES, CHANNELS)
    features, target = make_steps()[0]
    error = ""
    try:
        memory.update(features, target + 7 * rank, momentum=0.5, ignore_index=255 + 7 * rank)
    except ValueError as caught:
        error = str(caught)
    torch.save({"error": error}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_a_wrong_label_on_one_process_does_not_hang_the_others(tmp_path: Path) -> None:
    mp.start_processes(_with_a_wrong_label, args=(str(tmp_path),), nprocs=2, start_method="fork")
    errors = [torch.load(tmp_path / f"{rank}.pt", weights_only=True)["error"] for rank in range(2)]
    assert errors[0] == ""
    assert "target: expected labels in 0 … 5" in errors[1]
