"""MCIBI and MCIBI++ around any context that an image gives its own pixels, for images of any size."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from beyondpixel.lightning_modules.networks.aggregation import DatasetContext, aggregate_representations
from beyondpixel.lightning_modules.networks.alignment import check_images
from beyondpixel.lightning_modules.networks.contexts import ASPP, ObjectContext, PyramidPooling
from beyondpixel.lightning_modules.networks.encoders import build_encoder
from beyondpixel.lightning_modules.networks.feature_memory import FeatureMemory
from beyondpixel.lightning_modules.networks.feature_pyramid import FeaturePyramid
from beyondpixel.lightning_modules.networks.layers import (
    ClassificationHead,
    conv_norm_relu,
    initialize_head,
    set_norm_momentum,
)
from beyondpixel.lightning_modules.networks.statistics_memory import StatisticsMemory

ContextName = Literal["none", "ppm", "aspp", "ocr", "upernet"]
MemoryName = Literal["features", "statistics"]
Aggregation = Literal["soft", "hard"]
Initialization = Literal["mean", "random_pixel"]

# Chen et al., arXiv 1706.05587, section 4: rates double with the resolution
_ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
# coarse-to-fine inference of MCIBI++: weights of a pass's own class logits and of those that the passes before agree on
_OWN_WEIGHT, _PREVIOUS_WEIGHT = 2.0, 1.5


@dataclass(frozen=True)
class MCIBIOutputs:
    """What a training step needs of the network.

    Attributes:
        logits: (N, K, H, W), the prediction.
        features: (N, C, h, w), the pixel representations R that the memory is updated with; None without a memory.
        intermediate: (N, K, H, W) logits of the heads that are only supervised: "context" (H1, whose softmax is W),
            "image_context" (MCIBI++'s head on the image's own context), "auxiliary" (on the last stage but one).
    """

    logits: Tensor
    features: Tensor | None = None
    intermediate: dict[str, Tensor] = field(default_factory=dict)


class MCIBI(nn.Module):
    """FCN, PSPNet, DeepLabv3, OCRNet or UPerNet, with or without context from beyond the image.

    With a memory this is MCIBI (Jin et al., ICCV 2021) or MCIBI++ (Jin et al., TPAMI 2022): pixel representations R are
    classified coarsely (H1); W, the softmax of that, mixes the class representations in the memory; attention refines
    the mix; R, the mix and the image's own context are fused and classified (H2). Without one it is the network that
    the context is named for, and builds nothing that MCIBI adds.

    Where it differs from the authors' code: classes that were never seen take no part in W; upsampling is aligned with
    the pixels (:class:`~beyondpixel.lightning_modules.networks.alignment.FeatureGrid`); at output stride 16 the
    encoder's last stage is dilated. MCIBI++ fuses the image's own context here as MCIBI does.

    Args:
        num_classes: K.
        context: "none" (FCN), "ppm" (PSPNet), "aspp" (DeepLabv3), "ocr" (OCRNet) or "upernet" (UPerNet).
        memory: "features" (MCIBI), "statistics" (MCIBI++) or None.
        encoder, encoder_weights, output_stride: see
            :func:`~beyondpixel.lightning_modules.networks.encoders.build_encoder`.
        channels: C, those of R, of both contexts and of the heads; 512 in the papers.
        attention_channels: those of queries, keys and values; 256 in the papers.
        slots: representations a class in a memory of features.
        aggregation: "soft", or "hard" to give all weight to H1's most probable class.
        refinement: whether attention refines the mix (P); off in the ablation.
        initialization: "mean" or "random_pixel", what a class's first representation is made of.
        atrous_rates: of "aspp"; (6, 12, 18) at output stride 16 and (12, 24, 36) at 8 if None.
        dropout: probability, of whole channels before each classifier.
        norm_momentum: momentum of BatchNorm; None leaves torch's 0.1.
        auxiliary: whether to build the auxiliary head; "ocr" always has it, for its object regions.
        inference_passes: in evaluation, how often to aggregate, from the second time on with class logits that also
            hold what the passes before predicted (MCIBI++); 1 is a single pass.

    Raises:
        ValueError: for an argument out of range, an unknown encoder, or one that cannot be dilated.

    Example:
        >>> network = MCIBI(num_classes=4, encoder="resnet18", channels=32, attention_channels=16).eval()
        >>> network(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 4, 33, 47])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        context: ContextName = "aspp",
        memory: MemoryName | None = "features",
        encoder: str = "resnet101s",
        encoder_weights: str | None = None,
        output_stride: Literal[8, 16] = 8,
        channels: int = 512,
        attention_channels: int = 256,
        slots: int = 1,
        aggregation: Aggregation = "soft",
        refinement: bool = True,
        initialization: Initialization = "mean",
        atrous_rates: Sequence[int] | None = None,
        dropout: float = 0.1,
        norm_momentum: float | None = None,
        auxiliary: bool = True,
        inference_passes: int = 1,
    ) -> None:
        super().__init__()
        _check_choice("context", context, get_args(ContextName))
        _check_choice("memory", memory, (*get_args(MemoryName), None))
        _check_choice("aggregation", aggregation, get_args(Aggregation))
        _check_choice("initialization", initialization, get_args(Initialization))
        for name, value in (
            ("channels", channels),
            ("attention_channels", attention_channels),
            ("slots", slots),
            ("inference_passes", inference_passes),
        ):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if atrous_rates is not None and not (len(atrous_rates) > 0 and min(atrous_rates) > 0):
            raise ValueError(f"atrous_rates must be at least one positive number, got {list(atrous_rates)}")
        if slots > 1 and memory == "statistics":
            raise ValueError(f"slots must be 1 with memory='statistics', which keeps two numbers a class, got {slots}")
        self.encoder, self.grid = build_encoder(encoder, output_stride=output_stride, weights=encoder_weights)
        widths: list[int] = self.encoder.out_channels
        self.num_classes = num_classes
        self.hard = aggregation == "hard"
        self.inference_passes = inference_passes

        def head(in_channels: int, kernel_size: int = 1) -> ClassificationHead:
            return ClassificationHead(in_channels, channels, num_classes, kernel_size=kernel_size, dropout=dropout)

        self.representation: Any = (
            conv_norm_relu(widths[-1], channels, kernel_size=3) if memory or context in ("none", "ocr") else None
        )
        self.context: Any = None
        if context in ("ppm", "upernet"):
            self.context = PyramidPooling(widths[-1], channels)
        elif context == "aspp":
            self.context = ASPP(widths[-1], channels, atrous_rates or _ATROUS_RATES[output_stride])
        elif context == "ocr":
            self.context = ObjectContext(channels, attention_channels)
        self.pyramid: Any = FeaturePyramid(widths[2:-1], channels, self.grid) if context == "upernet" else None
        self.auxiliary_head: Any = head(widths[-2], kernel_size=3) if auxiliary or context == "ocr" else None

        self.memory: Any = None
        self.class_head: Any = None
        self.context_head: Any = None
        self.dataset_context: Any = None
        self.head: Any = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, kernel_size=1))
        if memory is not None:
            self.class_head = head(channels)
            self.dataset_context = DatasetContext(
                channels,
                attention_channels=attention_channels,
                slots=slots,
                refinement=refinement,
                within_image=self.context is not None,
            )
            self.head = head(channels)
            if memory == "features":
                self.memory = FeatureMemory(num_classes, channels, slots, initialization=initialization)
            else:
                self.memory = StatisticsMemory(num_classes, channels)
                self.context_head = head(channels) if self.context is not None else None
        for name, part in self.named_children():
            if name != "encoder":
                initialize_head(part)
        set_norm_momentum(self, norm_momentum)

    def forward(self, images: Tensor) -> Tensor:
        """From (N, 3, H, W) normalised images of any size to (N, K, H, W) logits."""
        return self.outputs(images).logits

    def outputs(self, images: Tensor) -> MCIBIOutputs:
        """The logits of :meth:`forward` with what else a training step supervises or remembers."""
        check_images(images)
        height, width = images.shape[-2:]
        padded = self.grid.pad(images)
        maps = self.encoder(padded)
        coarse: dict[str, Tensor] = {}
        if self.auxiliary_head is not None and (self.training or isinstance(self.context, ObjectContext)):
            coarse["auxiliary"] = self.auxiliary_head(maps[-2])
        features: Any = None if self.representation is None else self.representation(maps[-1])  # R (N, C, h, w)
        if isinstance(self.context, ObjectContext):
            auxiliary = self.grid.upsample(coarse["auxiliary"], features.shape[-2:])
            within: Any = self.context(features, auxiliary)
        else:
            within = None if self.context is None else self.context(maps[-1])
        if self.memory is None:
            logits = self._classify(maps, features if within is None else within)
        else:
            coarse["context"] = self.class_head(features)
            if self.context_head is not None:
                coarse["image_context"] = self.context_head(within)
            class_logits = coarse.get("image_context", coarse["context"])
            logits = self._classify_with_memory(maps, features, within, class_logits)
        full = {
            name: self.grid.upsample(small, padded.shape[-2:])[..., :height, :width]
            for name, small in {"logits": logits, **(coarse if self.training else {})}.items()
        }
        return MCIBIOutputs(full.pop("logits"), None if self.memory is None else features, full)

    def _classify(self, maps: Sequence[Tensor], representations: Tensor) -> Tensor:
        if self.pyramid is not None:
            representations = self.pyramid(maps[2:-1], representations)
        logits: Tensor = self.head(representations)
        return logits

    def _classify_with_memory(
        self, maps: Sequence[Tensor], features: Tensor, within: Tensor | None, class_logits: Tensor
    ) -> Tensor:
        # copies: a training step updates the memory before the backward pass needs what was read
        representations, seen = self.memory.representations(), self.memory.seen.clone()

        def classify(class_logits: Tensor) -> Tensor:
            mixed = aggregate_representations(class_logits, representations, seen, hard=self.hard)
            return self._classify(maps, self.dataset_context(features, mixed, within))

        passes = [classify(class_logits)]
        while not self.training and len(passes) < self.inference_passes:
            agreed = self.grid.upsample(torch.stack(passes).mean(dim=0), class_logits.shape[-2:])
            weighted = _OWN_WEIGHT * class_logits + _PREVIOUS_WEIGHT * agreed
            # the authors' code divides by one less than the sum of the weights, which sharpens W
            passes.append(classify(weighted / (_OWN_WEIGHT + _PREVIOUS_WEIGHT - 1)))
        return passes[-1]


def _check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
