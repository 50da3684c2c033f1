"""Decoders of DeepLabv3 and DeepLabv3+: the RMI authors' and those of segmentation-models-pytorch (SMP).

All are built from the encoder's channels, the atrous rates, the dropout and the grid, and map the encoder's feature
maps, from fine to coarse, to features (N, 256, h, w) that a 1x1 convolution classifies.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder, DeepLabV3PlusDecoder
from torch import Tensor, nn

from beyondpixel.lightning_modules.networks.alignment import FeatureGrid
from beyondpixel.lightning_modules.networks.contexts import ASPP
from beyondpixel.lightning_modules.networks.layers import conv_norm_relu

CHANNELS = 256
_FINE_MAP, _FINE_CHANNELS = 2, 48  # the map at stride 4, and its channels after DeepLabv3+'s reduction


class PaperV3Decoder(nn.Module):
    """ASPP alone, as Zhao et al. (NeurIPS 2019) trained DeepLabv3.

    Example:
        >>> grid = FeatureGrid(stride=16, align_corners=True)
        >>> decoder = PaperV3Decoder([3, 8, 8, 16, 32, 64], rates=(6, 12, 18), dropout=0.1, grid=grid)
        >>> decoder([torch.zeros(2, 64, 5, 7)]).shape
        torch.Size([2, 256, 5, 7])
    """

    def __init__(self, in_channels: Sequence[int], *, rates: Sequence[int], dropout: float, grid: FeatureGrid) -> None:
        super().__init__()
        self.grid = grid
        self.aspp = ASPP(in_channels[-1], CHANNELS, rates, fuse_kernel_size=1, dropout=dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the encoder's maps to (N, 256, h, w), at the size of the last map."""
        return cast(Tensor, self.aspp(maps[-1]))


class PaperV3PlusDecoder(PaperV3Decoder):
    """ASPP, fused with the map at stride 4 by two 3x3 convolutions, as Zhao et al. (NeurIPS 2019) trained DeepLabv3+.

    Example:
        >>> grid = FeatureGrid(stride=16, align_corners=True)
        >>> decoder = PaperV3PlusDecoder([3, 8, 8, 64], rates=(6, 12, 18), dropout=0.1, grid=grid)
        >>> maps = [torch.zeros(2, channels, size, size) for channels, size in ((3, 33), (8, 17), (8, 9), (64, 3))]
        >>> decoder(maps).shape
        torch.Size([2, 256, 9, 9])
    """

    def __init__(self, in_channels: Sequence[int], *, rates: Sequence[int], dropout: float, grid: FeatureGrid) -> None:
        super().__init__(in_channels, rates=rates, dropout=dropout, grid=grid)
        self.reduce = conv_norm_relu(in_channels[_FINE_MAP], _FINE_CHANNELS)
        self.fuse = nn.Sequential(
            conv_norm_relu(CHANNELS + _FINE_CHANNELS, CHANNELS, kernel_size=3),
            conv_norm_relu(CHANNELS, CHANNELS, kernel_size=3),
            nn.Dropout(dropout),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the encoder's maps to (N, 256, H/4, W/4)."""
        fine = self.reduce(maps[_FINE_MAP])
        coarse = self.grid.upsample(super().forward(maps), fine.shape[-2:])
        return cast(Tensor, self.fuse(torch.cat([coarse, fine], dim=1)))


class SMPV3Decoder(DeepLabV3Decoder):  # type: ignore[misc]
    """SMP's decoder of DeepLabv3: ASPP and another 3x3 convolution."""

    def __init__(self, in_channels: Sequence[int], *, rates: Sequence[int], dropout: float, grid: FeatureGrid) -> None:
        super().__init__(in_channels[-1], CHANNELS, rates, aspp_separable=False, aspp_dropout=dropout)


class SMPV3PlusDecoder(DeepLabV3PlusDecoder):  # type: ignore[misc]
    """SMP's decoder of DeepLabv3+, with separable convolutions and upsampling to the size of the fine map."""

    def __init__(self, in_channels: Sequence[int], *, rates: Sequence[int], dropout: float, grid: FeatureGrid) -> None:
        super().__init__(
            encoder_channels=in_channels,
            encoder_depth=5,
            out_channels=CHANNELS,
            atrous_rates=rates,
            output_stride=grid.stride,
            aspp_separable=True,
            aspp_dropout=dropout,
        )
        self.grid = grid

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the encoder's maps to (N, 256, H/4, W/4)."""
        fine = self.block1(maps[_FINE_MAP])
        # SMP upsamples by a fixed factor, which does not match the grid's sizes
        coarse = self.grid.upsample(self.aspp(maps[-1]), fine.shape[-2:])
        return cast(Tensor, self.block2(torch.cat([coarse, fine], dim=1)))


DECODERS: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "paper": {"v3": PaperV3Decoder, "v3plus": PaperV3PlusDecoder},
    "smp": {"v3": SMPV3Decoder, "v3plus": SMPV3PlusDecoder},
}
