"""DeepLabv3 and DeepLabv3+ for images of any size."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from beyondpixel.lightning_modules.networks.alignment import check_images
from beyondpixel.lightning_modules.networks.deeplab_decoders import CHANNELS, DECODERS
from beyondpixel.lightning_modules.networks.encoders import ATROUS_RATES, build_encoder
from beyondpixel.lightning_modules.networks.layers import initialize_head, set_norm_momentum
from beyondpixel.losses.functional.arguments import check_choice


class DeepLab(nn.Module):
    """DeepLabv3 (Chen et al., arXiv 1706.05587) or DeepLabv3+ (Chen et al., ECCV 2018) on any dilatable encoder.

    `decoder="paper", dilate_last_stage=False, encoder="resnet101s"` is the network that Zhao et al. (NeurIPS 2019)
    trained; `convert_authors_state_dict` converts their weights. v3 classifies the output of ASPP; v3+ fuses it
    with the map at stride 4 by two 3x3 convolutions.

    `decoder="smp"` is segmentation-models-pytorch's: v3 has another 3x3 convolution (256, BN, ReLU) before the
    classifier; v3+ has depthwise separable convolutions in ASPP and as its two 3x3 ones, one of them before the
    upsampling, and a single dropout.

    With either, upsampling is aligned with the pixels at every size (see `FeatureGrid`), the decoder has He's
    initialization with fan-in, and the rates follow the output stride.

    Args:
        num_classes: C, channels of the logits.
        variant: "v3" or "v3plus".
        encoder: any dilatable encoder of SMP or timm; the papers' ResNet-101 with the 3x3 deep stem is "resnet101s".
        encoder_weights: null to train from scratch, path of a local state dict, or "imagenet" (or another name of
            weights that SMP or timm has for this encoder) to download.
        decoder: "paper" or "smp".
        output_stride: 8 or 16.
        dilate_last_stage: false keeps the last stage at dilation 1 when its stride is removed, as in the RMI
            authors' code; only at output stride 16.
        atrous_rates: the three rates of ASPP; (6, 12, 18) at stride 16 and (12, 24, 36) at stride 8 if null.
        dropout: probability after ASPP's projection, and before the classifier of the paper's v3+.
        norm_momentum: momentum of all BatchNorm layers, the weight of the new batch; 0.05 in the RMI paper's training.
            null keeps each layer's own (mostly 0.1).

    Raises:
        ValueError: for an argument out of range, or an encoder that cannot be dilated.

    Example:
        >>> import torch
        >>> network = DeepLab(num_classes=4, encoder="resnet18").eval()
        >>> network(torch.zeros(1, 3, 33, 47)).shape
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
    ) -> None:
        super().__init__()
        check_choice("decoder", decoder, DECODERS)
        check_choice("variant", variant, DECODERS[decoder])
        if atrous_rates is not None and len(atrous_rates) != 3:
            raise ValueError(f"atrous_rates must be three numbers, got {list(atrous_rates)}")
        self.encoder, self.grid = build_encoder(
            encoder, output_stride=output_stride, weights=encoder_weights, dilate_last_stage=dilate_last_stage
        )
        self.decoder = DECODERS[decoder][variant](
            self.encoder.out_channels,
            rates=tuple(atrous_rates or ATROUS_RATES[output_stride]),
            dropout=dropout,
            grid=self.grid,
        )
        self.classifier = nn.Conv2d(CHANNELS, num_classes, kernel_size=1)
        initialize_head(self.decoder)
        initialize_head(self.classifier)
        set_norm_momentum(self, norm_momentum)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) normalized images of any size to (N, num_classes, H, W) logits."""
        check_images(images)
        height, width = images.shape[-2:]
        padded = self.grid.pad(images)
        logits = self.classifier(self.decoder(self.encoder(padded)))  # (N, C, h, w)
        return self.grid.upsample(logits, padded.shape[-2:])[..., :height, :width]
