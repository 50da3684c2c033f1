"""Inferer with the rows of MCIBI's memory exchanged, to test whether it matters which class a row belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from beyondpixel.experiments.errors import UserError


@torch.no_grad()
def exchanged_memory(images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
    """Predict with the memory of each class replaced by that of the class before it, cyclically.

    The score falls if the network uses its memory's information about classes, and stays if the memory only adds
    parameters. The memory is restored afterwards.

    Returns:
        Logits (N, C, H, W) of normalized images (N, 3, H, W).

    Raises:
        UserError: if the network is not an MCIBIModule with a memory.

    Example:
        >>> from beyondpixel.lightning_modules import MCIBIModule
        >>> module = MCIBIModule(num_classes=4, encoder="resnet18", channels=32, attention_channels=16).eval()
        >>> exchanged_memory(torch.zeros(1, 3, 33, 47), module).shape
        torch.Size([1, 4, 33, 47])
    """
    memory: Any = getattr(getattr(network, "network", None), "memory", None)
    if memory is None:
        raise UserError(
            "inferer 'memory:exchanged': expected MCIBIModule with memory 'features' or 'statistics', got "
            f"{type(network).__name__}, which has no memory of classes"
        )
    own = {name: state.clone() for name, state in memory.state_dict().items()}
    try:
        memory.load_state_dict({name: state.roll(1, dims=0) for name, state in own.items()})
        return network(images)
    finally:
        memory.load_state_dict(own)
