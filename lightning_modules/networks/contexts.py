"""Context modules within the image: pyramid pooling, ASPP, object regions; and UPerNet's feature pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beyondpixel.lightning_modules.networks.alignment import FeatureGrid
from beyondpixel.lightning_modules.networks.layers import ClassificationHead, SelfAttentionBlock, conv_norm_relu


class PyramidPooling(nn.Module):
    """PSPNet's pyramid pooling module (Zhao et al., CVPR 2017, section 3.2): means over 1, 4, 9 and 36 bins.

    Args:
        in_channels: channels of the encoder's last map.
        channels: channels of each pooled map, and of the result.
        bins: bins per side.

    Example:
        >>> PyramidPooling(32, channels=8)(torch.zeros(2, 32, 5, 7)).shape
        torch.Size([2, 8, 5, 7])
    """

    def __init__(self, in_channels: int, channels: int, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.levels = nn.ModuleList(conv_norm_relu(in_channels, channels) for _ in self.bins)
        self.fuse = conv_norm_relu(in_channels + len(self.bins) * channels, channels, kernel_size=3)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_channels, h, w) to (N, channels, h, w)."""
        pooled = [
            # a bin covers an area, so interpolation between bins does not align their centers with the corners
            F.interpolate(level(F.adaptive_avg_pool2d(features, size)), size=features.shape[-2:], mode="bilinear")
            for size, level in zip(self.bins, self.levels, strict=True)
        ]
        fused: Tensor = self.fuse(torch.cat([features, *pooled], dim=1))
        return fused


class ASPP(nn.Module):
    """DeepLabv3's atrous spatial pyramid pooling (Chen et al., arXiv 1706.05587, section 3.3).

    Args:
        in_channels: channels of the encoder's last map.
        channels: channels of each branch, and of the result.
        rates: rates of the dilated 3x3 convolutions.
        fuse_kernel_size: of the convolution that fuses the branches: 3 in MCIBI, 1 in DeepLab.
        dropout: dropout probability after that convolution.

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

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_channels, h, w) to (N, channels, h, w)."""
        image = self.image(features.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *features.shape[-2:])
        branches = [branch(features) for branch in self.branches]
        fused: Tensor = self.dropout(self.fuse(torch.cat([*branches, image], dim=1)))
        return fused


class ImageContext(nn.Module):
    """Context from the encoder's last map by one block: PSPNet, DeepLabv3, UPerNet, or the convolution of FCN.

    Every context maps the encoder's feature maps, from fine to coarse, to features (N, C, h, w) of the last map's size,
    and to intermediate logits to supervise, by name.

    Example:
        >>> context = ImageContext(PyramidPooling(32, channels=8))
        >>> features, logits = context([torch.zeros(2, 16, 9, 9), torch.zeros(2, 32, 5, 7)])
        >>> features.shape, logits
        (torch.Size([2, 8, 5, 7]), {})
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Map the encoder's maps to the context and no logits."""
        return self.block(maps[-1]), {}


class ObjectContext(nn.Module):
    """OCRNet's object-contextual representations (Yuan et al., ECCV 2020, Eq. 3-7).

    Each class has a soft region in the image, from the logits of a head on the second-to-last map. A region's
    representation is the mean of its pixels, and each pixel attends to the regions.

    Args:
        in_channels: channels of the encoder's last map.
        channels: channels of the pixel representations and of the result.
        attention_channels: channels of queries, keys and values.
        region_head: maps the second-to-last map to logits.

    Example:
        >>> region_head = ClassificationHead(16, 8, num_classes=3)
        >>> ocr = ObjectContext(32, channels=8, attention_channels=4, region_head=region_head)
        >>> features, logits = ocr([torch.zeros(2, 16, 5, 7), torch.zeros(2, 32, 5, 7)])
        >>> features.shape, logits["auxiliary"].shape
        (torch.Size([2, 8, 5, 7]), torch.Size([2, 3, 5, 7]))
    """

    def __init__(
        self, in_channels: int, channels: int, attention_channels: int, *, region_head: ClassificationHead
    ) -> None:
        super().__init__()
        self.representation = conv_norm_relu(in_channels, channels, kernel_size=3)
        self.region_head = region_head
        self.attention = SelfAttentionBlock(channels, attention_channels)
        self.fuse = conv_norm_relu(2 * channels, channels)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Map the encoder's maps to the context and the regions' logits, which are the auxiliary ones."""
        features, region_logits = self.representation(maps[-1]), self.region_head(maps[-2])
        membership = region_logits.flatten(2).softmax(dim=2)  # (N, K, hw), sums to 1 over the pixels
        regions = torch.einsum("nki,nci->nck", membership, features.flatten(2)).unsqueeze(3)  # (N, C, K, 1)
        fused = self.fuse(torch.cat([self.attention(features, regions), features], dim=1))
        return fused, {"auxiliary": region_logits}


class FeaturePyramid(nn.Module):
    """UPerNet's feature pyramid network (Xiao et al., ECCV 2018), whose top is a map that already contains context.

    Args:
        in_channels: channels of the encoder's maps, from fine to coarse, without the last.
        top_channels: channels of the top, and of the top-down sums.
        channels: channels of every level and of the result.
        grid: positions of the features in the image.

    Example:
        >>> grid = FeatureGrid(stride=16, align_corners=True)
        >>> pyramid = FeaturePyramid([16, 32], top_channels=12, channels=8, grid=grid)
        >>> maps = [torch.zeros(2, 16, 9, 9), torch.zeros(2, 32, 5, 5)]
        >>> pyramid(maps, torch.zeros(2, 12, 3, 3)).shape
        torch.Size([2, 8, 9, 9])
    """

    def __init__(self, in_channels: Sequence[int], top_channels: int, channels: int, grid: FeatureGrid) -> None:
        super().__init__()
        self.grid = grid
        self.lateral = nn.ModuleList(conv_norm_relu(width, top_channels) for width in in_channels)
        self.smooth = nn.ModuleList(conv_norm_relu(top_channels, channels, kernel_size=3) for _ in in_channels)
        self.fuse = conv_norm_relu(len(in_channels) * channels + top_channels, channels, kernel_size=3)

    def forward(self, maps: Sequence[Tensor], top: Tensor) -> Tensor:
        """Map the encoder's maps, fine to coarse, and the top (N, C', h, w) to (N, C, h', w') at the finest size."""
        finest = maps[0].shape[-2:]
        levels = [top]
        below = top
        for fine, lateral, smooth in reversed(list(zip(maps, self.lateral, self.smooth, strict=True))):
            below = lateral(fine) + self.grid.upsample(below, fine.shape[-2:])
            levels.insert(0, smooth(below))
        fused: Tensor = self.fuse(torch.cat([self.grid.upsample(level, finest) for level in levels], dim=1))
        return fused
