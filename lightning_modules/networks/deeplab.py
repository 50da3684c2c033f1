"""DeepLabv3 and DeepLabv3+ for images of any size."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder, DeepLabV3PlusDecoder
from torch import Tensor, nn

from beyondpixel.lightning_modules.networks.alignment import check_images
from beyondpixel.lightning_modules.networks.encoders import build_encoder
from beyondpixel.lightning_modules.networks.initialization import initialize_head, set_norm_momentum

# Chen et al., arXiv 1706.05587, section 4: rates double with the resolution
_ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}


class DeepLab(nn.Module):
    """DeepLabv3 (Chen et al., arXiv 1706.05587) or DeepLabv3+ (Chen et al., ECCV 2018) on any dilatable encoder.

    Decoders are SMP's. They differ from those that the RMI authors trained:

    - v3: SMP has one more 3x3 convolution (256, BN, ReLU) between ASPP and classifier; the authors classify directly.
    - v3+: SMP's ASPP and both 3x3 convolutions are depthwise separable, one stands before the upsampling and one after
      the concatenation; the authors have ordinary convolutions, both after it, and a second dropout.
    - SMP's last stage is dilated at output stride 16 (see :func:`build_encoder`).

    What is like the authors' and unlike SMP: upsampling is aligned with the pixels at every size
    (see :class:`~beyondpixel.lightning_modules.networks.alignment.FeatureGrid`), the decoder starts from Kaiming's
    initialisation with fan-in, dropout is 0.1, and rates follow the output stride.

    Args:
        num_classes: C, channels of the logits.
        variant: "v3" or "v3plus".
        encoder: any dilatable encoder of SMP or timm; the papers' is "resnet101s".
        encoder_weights: None, a local file, or weights on the hub; see :func:`load_pretrained`.
        output_stride: 8 or 16.
        atrous_rates: the three rates of ASPP; (6, 12, 18) at stride 16 and (12, 24, 36) at stride 8 if None.
        dropout: probability after ASPP's projection.
        norm_momentum: momentum of all BatchNorm layers, the weight of the new batch; 0.05 in the RMI paper's training.
            None leaves each as it is (0.1 mostly).

    Raises:
        ValueError: for an argument out of range, or an encoder that cannot be dilated.

    Example:
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
        output_stride: Literal[8, 16] = 16,
        atrous_rates: Sequence[int] | None = None,
        dropout: float = 0.1,
        norm_momentum: float | None = None,
    ) -> None:
        super().__init__()
        if variant not in ("v3", "v3plus"):
            raise ValueError(f"variant must be 'v3' or 'v3plus', got {variant!r}")
        if atrous_rates is not None and len(atrous_rates) != 3:
            raise ValueError(f"atrous_rates must be three numbers, got {list(atrous_rates)}")
        self.encoder, self.grid = build_encoder(encoder, output_stride=output_stride, weights=encoder_weights)
        rates = _ATROUS_RATES[output_stride] if atrous_rates is None else tuple(atrous_rates)
        channels: list[int] = self.encoder.out_channels
        self.decoder: Any
        if variant == "v3":
            self.decoder = DeepLabV3Decoder(
                in_channels=channels[-1],
                out_channels=256,
                atrous_rates=rates,
                aspp_separable=False,
                aspp_dropout=dropout,
            )
        else:
            self.decoder = DeepLabV3PlusDecoder(
                encoder_channels=channels,
                encoder_depth=5,
                out_channels=256,
                atrous_rates=rates,
                output_stride=output_stride,
                aspp_separable=True,
                aspp_dropout=dropout,
            )
        self.variant = variant
        self.classifier = nn.Conv2d(256, num_classes, kernel_size=1)
        for part in (self.decoder, self.classifier):
            initialize_head(part)
        set_norm_momentum(self, norm_momentum)

    def forward(self, images: Tensor) -> Tensor:
        """From (N, 3, H, W) normalised images of any size to (N, num_classes, H, W) logits."""
        check_images(images)
        height, width = images.shape[-2:]
        padded = self.grid.pad(images)
        features = self.encoder(padded)
        logits = self.classifier(self._decode(features))  # (N, C, h, w)
        return self.grid.upsample(logits, padded.shape[-2:])[..., :height, :width]

    def _decode(self, features: Sequence[Tensor]) -> Tensor:
        """SMP's decoders, but upsampling to the size that is there and not by a factor that presumes it."""
        if self.variant == "v3":
            return cast(Tensor, self.decoder(features))
        fine = self.decoder.block1(features[2])  # (N, 48, H/4, W/4)
        coarse = self.grid.upsample(self.decoder.aspp(features[-1]), fine.shape[-2:])  # (N, 256, H/4, W/4)
        return cast(Tensor, self.decoder.block2(torch.cat([coarse, fine], dim=1)))
