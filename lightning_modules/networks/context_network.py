"""FCN, PSPNet, DeepLabv3, OCRNet and UPerNet for images of any size."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor, nn

from beyondpixel.lightning_modules.networks.alignment import check_images
from beyondpixel.lightning_modules.networks.contexts import (
    ASPP,
    FeaturePyramid,
    ImageContext,
    ObjectContext,
    PyramidPooling,
)
from beyondpixel.lightning_modules.networks.encoders import ATROUS_RATES, build_encoder
from beyondpixel.lightning_modules.networks.layers import (
    ClassificationHead,
    conv_norm_relu,
    initialize_head,
    set_norm_momentum,
)
from beyondpixel.losses.functional.arguments import check_choice, check_positive_int

ContextName = Literal["none", "ppm", "aspp", "ocr", "upernet", "upernet_aspp"]


@dataclass(frozen=True)
class NetworkOutputs:
    """Outputs of a network that a training step needs.

    Attributes:
        logits: (N, K, H, W), the prediction.
        features: (N, C, h, w), the pixel representations R that MCIBI's memory is updated with; None without a memory.
        intermediate: (N, K, H, W) logits of heads that are only supervised: "auxiliary" (on the second-to-last stage),
            "context" (H1 of MCIBI, whose softmax is W), "image_context" (MCIBI++'s head on the image's own context).
    """

    logits: Tensor
    features: Tensor | None = None
    intermediate: dict[str, Tensor] = field(default_factory=dict)


class ContextNetwork(nn.Module):
    """Dilated encoder, context module and classifier.

    Args:
        num_classes: K.
        context: "none" (FCN), "ppm" (PSPNet), "aspp" (DeepLabv3), "ocr" (OCRNet), "upernet" (UPerNet, on pyramid
            pooling) or "upernet_aspp" (UPerNet's feature pyramid on ASPP).
        encoder: any dilatable encoder of SMP or timm; "resnet50c" and "resnet101s" have the papers' 3x3 deep stem.
        encoder_weights: null to train from scratch, path of a local state dict, or "imagenet" (or another name of
            weights that SMP or timm has for this encoder) to download.
        output_stride: 8 or 16.
        channels: C, channels of the context and of the heads; 512 in the papers.
        attention_channels: channels of queries, keys and values of every attention; 256 in the papers.
        atrous_rates: of ASPP; (6, 12, 18) at output stride 16 and (12, 24, 36) at 8 if null.
        dropout: probability of dropping whole channels before each classifier.
        norm_momentum: momentum of BatchNorm; null keeps torch's 0.1.
        auxiliary: whether to build the auxiliary head; "ocr" always has it, for its object regions.

    Raises:
        ValueError: for an argument out of range, an unknown encoder, or one that cannot be dilated.

    Example:
        >>> import torch
        >>> network = ContextNetwork(num_classes=4, context="ppm", encoder="resnet18", channels=32).eval()
        >>> network(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 4, 33, 47])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        context: ContextName = "aspp",
        encoder: str = "resnet101s",
        encoder_weights: str | None = None,
        output_stride: Literal[8, 16] = 8,
        channels: int = 512,
        attention_channels: int = 256,
        atrous_rates: Sequence[int] | None = None,
        dropout: float = 0.1,
        norm_momentum: float | None = None,
        auxiliary: bool = True,
    ) -> None:
        super().__init__()
        check_choice("context", context, get_args(ContextName))
        check_positive_int("channels", channels)
        check_positive_int("attention_channels", attention_channels)
        if atrous_rates is not None and not (len(atrous_rates) > 0 and min(atrous_rates) > 0):
            raise ValueError(f"atrous_rates must be at least one positive number, got {list(atrous_rates)}")
        self.encoder, self.grid = build_encoder(encoder, output_stride=output_stride, weights=encoder_weights)
        self.num_classes, self.channels, self.attention_channels = num_classes, channels, attention_channels
        self.dropout, self.norm_momentum = dropout, norm_momentum
        self.context = self._build_context(context, tuple(atrous_rates or ATROUS_RATES[output_stride]))
        self.auxiliary_head = self.build_head(self.widths[-2], 3) if auxiliary and context != "ocr" else None
        self.pyramid = self.build_pyramid(channels) if context in ("upernet", "upernet_aspp") else None
        classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        self.head: nn.Module = nn.Sequential(nn.Dropout2d(dropout), classifier)
        self.initialize()

    @property
    def widths(self) -> list[int]:
        """Channels of the encoder's maps, from fine to coarse."""
        widths: list[int] = self.encoder.out_channels
        return widths

    def _build_context(self, name: ContextName, rates: Sequence[int]) -> nn.Module:
        in_channels, channels = self.widths[-1], self.channels
        if name == "ocr":
            region_head = self.build_head(self.widths[-2], 3)
            return ObjectContext(in_channels, channels, self.attention_channels, region_head=region_head)
        if name == "none":
            return ImageContext(conv_norm_relu(in_channels, channels, kernel_size=3))
        if name in ("ppm", "upernet"):
            return ImageContext(PyramidPooling(in_channels, channels))
        return ImageContext(ASPP(in_channels, channels, rates))

    def build_head(self, in_channels: int, kernel_size: int = 1) -> ClassificationHead:
        """Build a head of two convolutions, the first one to C channels."""
        return ClassificationHead(
            in_channels, self.channels, self.num_classes, kernel_size=kernel_size, dropout=self.dropout
        )

    def build_pyramid(self, top_channels: int) -> FeaturePyramid:
        """Build UPerNet's feature pyramid, from the last map to the map at stride 4."""
        return FeaturePyramid(self.widths[2:-1], top_channels, self.channels, self.grid)

    def initialize(self) -> None:
        """Initialize all but the encoder, and set BatchNorm's momentum."""
        for name, part in self.named_children():
            if name != "encoder":
                initialize_head(part)
        set_norm_momentum(self, self.norm_momentum)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) normalized images of any size to (N, K, H, W) logits."""
        return self.outputs(images).logits

    def outputs(self, images: Tensor) -> NetworkOutputs:
        """Compute the logits of `forward`, and the logits and features that a training step needs besides."""
        check_images(images)
        height, width = images.shape[-2:]
        padded = self.grid.pad(images)
        outputs = self.decode(self.encoder(padded))

        def full_size(logits: Tensor) -> Tensor:
            return self.grid.upsample(logits, padded.shape[-2:])[..., :height, :width]

        intermediate = outputs.intermediate if self.training else {}
        return NetworkOutputs(
            full_size(outputs.logits),
            outputs.features,
            {name: full_size(logits) for name, logits in intermediate.items()},
        )

    def decode(self, maps: Sequence[Tensor]) -> NetworkOutputs:
        """Map the encoder's maps, fine to coarse, to outputs at the size of the classified features."""
        features, intermediate = self.context(maps)
        return NetworkOutputs(self.classify(maps, features), None, {**intermediate, **self.auxiliary(maps)})

    def auxiliary(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Compute the auxiliary head's logits, in training only."""
        if self.auxiliary_head is None or not self.training:
            return {}
        return {"auxiliary": self.auxiliary_head(maps[-2])}

    def classify(self, maps: Sequence[Tensor], features: Tensor) -> Tensor:
        """Map the encoder's maps and the features with context to logits."""
        if self.pyramid is not None:
            features = self.pyramid(maps[2:-1], features)
        logits: Tensor = self.head(features)
        return logits
