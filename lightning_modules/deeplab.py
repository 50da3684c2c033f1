"""DeepLab as a Lightning module."""

from typing import Any

from beyondpixel.lightning_modules.base import SegmentationModule
from beyondpixel.lightning_modules.networks import DeepLab


class DeepLabModule(SegmentationModule):
    """DeepLabv3 or DeepLabv3+, trained for segmentation.

    Maps images of any size to (N, num_classes, H, W) logits of the same size. Takes the arguments of
    `SegmentationModule` (loss, lr, ...) and those of its network, `DeepLab` (variant, encoder, decoder, ...).

    Example:
        >>> import torch
        >>> module = DeepLabModule(num_classes=4, encoder="resnet18", loss="ce").eval()
        >>> module(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 4, 33, 47])
    """

    def configure_network(self, **network: Any) -> DeepLab:
        """Build the network from the arguments of `DeepLab`."""
        return DeepLab(self.num_classes, **network)
