"""DeepLab as a Lightning module."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from beyondpixel.lightning_modules.base import SegmentationModule
from beyondpixel.lightning_modules.networks import DeepLab


class DeepLabModule(SegmentationModule):
    """DeepLabv3 or DeepLabv3+, trained for segmentation.

    Images of any size in, (N, num_classes, H, W) logits of the same size out.

    Args:
        num_classes: C, at least 2.
        variant: "v3" or "v3plus".
        encoder: name of any encoder of SMP or timm that can be dilated; the papers' ResNet-101 with the 3x3 deep stem
            is "resnet101s".
        encoder_weights: null to train from scratch, path of a local state dict, or "imagenet" (or another name of
            weights that SMP or timm has for this encoder) to fetch.
        decoder: "paper" or "smp", see :class:`~beyondpixel.lightning_modules.networks.DeepLab`.
        output_stride: 8 or 16.
        dilate_last_stage: false for the RMI authors' encoder at output stride 16.
        atrous_rates: rates of ASPP; (6, 12, 18) at output stride 16 and (12, 24, 36) at 8 if null.
        dropout: probability after ASPP.
        norm_momentum: momentum of BatchNorm; 0.05 in the RMI paper's training; null leaves torch's 0.1.
        kwargs: those of :class:`SegmentationModule`: ignore_index, class_names, loss, lr, ...

    Raises:
        ValueError: for an argument out of range, an unknown encoder, or one that cannot be dilated.

    Example:
        >>> import torch
        >>> module = DeepLabModule(num_classes=4, encoder="resnet18", loss="ce").eval()
        >>> module(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 4, 33, 47])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        variant: Literal["v3", "v3plus"] = "v3plus",
        encoder: str = "resnet101s",
        encoder_weights: str | None = None,
        decoder: Literal["paper", "smp"] = "smp",
        output_stride: Literal[8, 16] = 16,
        dilate_last_stage: bool = True,
        atrous_rates: Sequence[int] | None = None,
        dropout: float = 0.1,
        norm_momentum: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def configure_network(self) -> nn.Module:
        """Build the DeepLab that the hyper-parameters describe."""
        names = (
            "num_classes",
            "variant",
            "encoder",
            "encoder_weights",
            "decoder",
            "output_stride",
            "dilate_last_stage",
            "atrous_rates",
            "dropout",
            "norm_momentum",
        )
        return DeepLab(**{name: self.hparams[name] for name in names})
