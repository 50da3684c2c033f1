"""Room for intermediate results that the next chunk uses again."""

import math

import torch
from torch import Tensor


class Scratch:
    """Named rooms, made when first asked for.

    On a CPU a fresh tensor of some megabytes is handed out by the system page by page as it is written, which takes
    longer than most of what is done here with it. A loop over chunks therefore writes into the same rooms every time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rooms: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Contiguous, holding anything; what was taken by this name before is overwritten."""
        size = math.prod(shape)
        room = self._rooms.get(name)
        if room is None or room.numel() < size or room.dtype != dtype:
            room = self._rooms[name] = torch.empty(size, dtype=dtype, device=self._device)
        return room[:size].view(shape)

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """As `take`, of the shape and dtype of a tensor."""
        return self.take(name, tuple(tensor.shape), tensor.dtype)
