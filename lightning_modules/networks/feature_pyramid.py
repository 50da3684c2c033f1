"""UPerNet's way from coarse context back to fine features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from beyondpixel.lightning_modules.networks.alignment import FeatureGrid
from beyondpixel.lightning_modules.networks.layers import conv_norm_relu


class FeaturePyramid(nn.Module):
    """UPerNet's feature pyramid network (Xiao et al., ECCV 2018), whose top is a map that already holds context.

    Args:
        in_channels: those of the encoder's maps, from fine to coarse, without the last.
        channels: those of the top, of every level and of the result.
        grid: where the maps' values lie.

    Example:
        >>> pyramid = FeaturePyramid([16, 32], channels=8, grid=FeatureGrid(stride=16, align_corners=True))
        >>> maps = [torch.zeros(2, 16, 9, 9), torch.zeros(2, 32, 5, 5)]
        >>> pyramid(maps, torch.zeros(2, 8, 3, 3)).shape
        torch.Size([2, 8, 9, 9])
    """

    def __init__(self, in_channels: Sequence[int], channels: int, grid: FeatureGrid) -> None:
        super().__init__()
        self.grid = grid
        self.lateral = nn.ModuleList(conv_norm_relu(width, channels) for width in in_channels)
        self.smooth = nn.ModuleList(conv_norm_relu(channels, channels, kernel_size=3) for _ in in_channels)
        self.fuse = conv_norm_relu((len(in_channels) + 1) * channels, channels, kernel_size=3)

    def forward(self, maps: Sequence[Tensor], top: Tensor) -> Tensor:
        """From the encoder's maps, fine to coarse, and the top (N, C, h, w) to (N, C, h', w') at the finest size."""
        finest = maps[0].shape[-2:]
        levels = [top]
        below = top
        for fine, lateral, smooth in reversed(list(zip(maps, self.lateral, self.smooth, strict=True))):
            below = lateral(fine) + self.grid.upsample(below, fine.shape[-2:])
            levels.append(smooth(below))
        fused: Tensor = self.fuse(torch.cat([self.grid.upsample(level, finest) for level in levels], dim=1))
        return fused
