"""Contexts that an image gives its own pixels: pyramid pooling, atrous pyramid, object regions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beyondpixel.lightning_modules.networks.attention import SelfAttentionBlock
from beyondpixel.lightning_modules.networks.layers import conv_norm_relu


class PyramidPooling(nn.Module):
    """PSPNet's pyramid pooling module (Zhao et al., CVPR 2017, section 3.2): means over 1, 4, 9 and 36 bins.

    Args:
        in_channels: those of the encoder's last map.
        channels: those of each pooled map, and of the result.
        bins: bins on a side.

    Example:
        >>> PyramidPooling(32, channels=8)(torch.zeros(2, 32, 5, 7)).shape
        torch.Size([2, 8, 5, 7])
    """

    def __init__(self, in_channels: int, channels: int, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.levels = nn.ModuleList(conv_norm_relu(in_channels, channels) for _ in self.bins)
        self.fuse = conv_norm_relu(in_channels + len(self.bins) * channels, channels, kernel_size=3)

    def forward(self, maps: Tensor) -> Tensor:
        """From (N, in_channels, h, w) to (N, channels, h, w)."""
        pooled = [
            # a bin is an area of the map, so bilinear interpolation between bins is that of areas
            F.interpolate(level(F.adaptive_avg_pool2d(maps, size)), size=maps.shape[-2:], mode="bilinear")
            for size, level in zip(self.bins, self.levels, strict=True)
        ]
        fused: Tensor = self.fuse(torch.cat([maps, *pooled], dim=1))
        return fused


class ASPP(nn.Module):
    """DeepLabv3's atrous spatial pyramid pooling (Chen et al., arXiv 1706.05587, section 3.3).

    Args:
        in_channels: those of the encoder's last map.
        channels: those of each branch, and of the result.
        rates: of the dilated 3x3 convolutions.
        fuse_kernel_size: of the convolution that fuses the branches: 3 in MCIBI, 1 in DeepLab.
        dropout: probability after it.

    Example:
        >>> ASPP(32, channels=8, rates=(6, 12, 18))(torch.zeros(2, 32, 5, 7)).shape
        torch.Size([2, 8, 5, 7])
    """

    def __init__(
        self, in_channels: int, channels: int, rates: Sequence[int], *, fuse_kernel_size: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv_norm_relu(in_channels, channels)])
        self.branches.extend(conv_norm_relu(in_channels, channels, kernel_size=3, dilation=rate) for rate in rates)
        self.image = conv_norm_relu(in_channels, channels)
        self.fuse = conv_norm_relu((len(rates) + 2) * channels, channels, kernel_size=fuse_kernel_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, maps: Tensor) -> Tensor:
        """From (N, in_channels, h, w) to (N, channels, h, w)."""
        image = self.image(maps.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *maps.shape[-2:])
        fused: Tensor = self.dropout(self.fuse(torch.cat([*(branch(maps) for branch in self.branches), image], dim=1)))
        return fused


class ObjectContext(nn.Module):
    """OCRNet's object-contextual representations (Yuan et al., ECCV 2020, Eq. 3–7).

    Each class has a soft region in the image, from coarse logits; a region's representation is the mean of its pixels,
    and each pixel gathers from the regions by attention.

    Args:
        channels: those of the pixel representations and of the result.
        attention_channels: those of queries, keys and values.

    Example:
        >>> ocr = ObjectContext(16, attention_channels=8)
        >>> ocr(torch.zeros(2, 16, 5, 7), torch.zeros(2, 3, 5, 7)).shape
        torch.Size([2, 16, 5, 7])
    """

    def __init__(self, channels: int, attention_channels: int) -> None:
        super().__init__()
        self.attention = SelfAttentionBlock(channels, attention_channels)
        self.fuse = conv_norm_relu(2 * channels, channels)

    def forward(self, features: Tensor, class_logits: Tensor) -> Tensor:
        """From representations (N, C, h, w) and coarse logits (N, K, h, w) to (N, C, h, w)."""
        membership = class_logits.flatten(2).softmax(dim=2)  # (N, K, hw), sums to 1 over the pixels
        regions = torch.einsum("nki,nci->nck", membership, features.flatten(2)).unsqueeze(3)  # (N, C, K, 1)
        fused: Tensor = self.fuse(torch.cat([self.attention(features, regions), features], dim=1))
        return fused
