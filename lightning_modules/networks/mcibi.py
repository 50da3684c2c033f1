"""MCIBI and MCIBI++ on top of any context module."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from beyondpixel.lightning_modules.networks.aggregation import (
    DatasetContext,
    FusedContexts,
    aggregate_representations,
)
from beyondpixel.lightning_modules.networks.context_network import ContextName, ContextNetwork, NetworkOutputs
from beyondpixel.lightning_modules.networks.feature_memory import FeatureMemory, Initialization
from beyondpixel.lightning_modules.networks.layers import ClassificationHead, conv_norm_relu
from beyondpixel.lightning_modules.networks.statistics_memory import StatisticsMemory
from beyondpixel.losses.functional.arguments import check_choice, check_positive_int

# MCIBI++'s repeated inference: weights of the network's own class logits and of the previous passes' predictions
_OWN_WEIGHT, _PREVIOUS_WEIGHT = 2.0, 1.5


class MCIBI(ContextNetwork):
    """A context network with context from beyond the image: MCIBI (Jin et al., ICCV 2021) or MCIBI++ (TPAMI 2022).

    Pixel representations R are classified coarsely (H1); W, the softmax of that, mixes the class representations in the
    memory; attention refines the mix, which is fused with R. MCIBI then fuses the image's own context, refined by
    another attention, and classifies (H2). MCIBI++, as in the authors' published configurations, concatenates the
    image's own context unrefined, computes W with a head on it, and starts UPerNet's pyramid from that concatenation.

    Differences from the authors' code: classes that were never seen are excluded from W; upsampling is aligned with the
    pixels (`FeatureGrid`); at output stride 16 the encoder's last stage is dilated.

    Args:
        num_classes: K.
        context: the image's own context, see `ContextNetwork`.
        memory: "features" (MCIBI: representations of each class), "statistics" (MCIBI++: a mean and a standard
            deviation of each class), or null for the context network alone, without MCIBI's additions.
        slots: representations per class in a memory of features.
        aggregation: "soft", or "hard" for the most probable class alone.
        refinement: whether attention over the image refines the memory's context (the paper's P).
        initialization: a class's first representation: "mean" (the authors' code) or "random_pixel" (their text); or
            "random", numbers independent of the data, which a memory_momentum of 0 keeps (a control).
        update_strategy: "cosine", which gives more weight to pixels less similar to the memory, or "mean".
        memory_gradient: memory used for the gradient of W: "read", as read by the forward pass, which gives the true
            gradient; or "updated", as written by the update of the same step, as in the authors' code, where the update
            overwrites in place values that backward still needs. They differ by the update of the memory: by up to 0.8
            of the gradient's norm at momentum 0.9, by 0.008 at 0.01.
        inference_passes: number of aggregations in evaluation, from the second on with class logits that include the
            previous passes' predictions (MCIBI++); 1 is a single pass.
        network: arguments of `ContextNetwork`: encoder, output_stride, channels, ...

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
        memory: Literal["features", "statistics"] | None = "features",
        slots: int = 1,
        aggregation: Literal["soft", "hard"] = "soft",
        refinement: bool = True,
        initialization: Initialization = "mean",
        update_strategy: Literal["cosine", "mean"] = "cosine",
        memory_gradient: Literal["read", "updated"] = "read",
        inference_passes: int = 1,
        **network: Any,
    ) -> None:
        for name, value, choices in (
            ("memory", memory, ("features", "statistics", None)),
            ("aggregation", aggregation, ("soft", "hard")),
            ("initialization", initialization, get_args(Initialization)),
            ("update_strategy", update_strategy, ("cosine", "mean")),
            ("memory_gradient", memory_gradient, ("read", "updated")),
        ):
            check_choice(name, value, choices)
        check_positive_int("slots", slots)
        check_positive_int("inference_passes", inference_passes)
        if slots > 1 and memory == "statistics":
            raise ValueError(f"slots must be 1 with memory='statistics' (two numbers per class), got {slots}")
        if slots > 1 and update_strategy == "mean":
            raise ValueError(
                f"update_strategy must be 'cosine' with slots={slots}: a plain mean does not determine which slot "
                "a pixel belongs to"
            )
        if memory == "statistics" and memory_gradient == "updated":
            raise ValueError(
                "memory_gradient must be 'read' with memory='statistics': MCIBI++ draws new representations in "
                "each forward pass, and the update does not change those already drawn"
            )
        super().__init__(num_classes, context=context, **network)
        self.hard = aggregation == "hard"
        # two numbers per class have no direction for a cosine
        self.update_strategy: Literal["cosine", "mean"] = "mean" if memory == "statistics" else update_strategy
        self.memory_gradient = memory_gradient
        self.inference_passes = inference_passes
        self.memory: FeatureMemory | StatisticsMemory | None = None
        self.context_head: ClassificationHead | None = None
        self.fusion: FusedContexts | None = None
        if memory is not None:
            self._build_dataset_context(context, memory, slots, refinement=refinement, initialization=initialization)
            self.initialize()

    def _build_dataset_context(
        self,
        context: ContextName,
        memory: Literal["features", "statistics"],
        slots: int,
        *,
        refinement: bool,
        initialization: Initialization,
    ) -> None:
        """Build what MCIBI adds to the context network."""
        # FCN's features are R themselves
        self.representation = (
            conv_norm_relu(self.widths[-1], self.channels, kernel_size=3) if context != "none" else None
        )
        self.class_head = self.build_head(self.channels)
        self.dataset_context = DatasetContext(
            self.channels, attention_channels=self.attention_channels, slots=slots, refinement=refinement
        )
        if memory == "features":
            self.memory = FeatureMemory(self.num_classes, self.channels, slots, initialization=initialization)
            self.head = self.build_head(self.channels)
            if context != "none":
                self.fusion = FusedContexts(self.channels, self.attention_channels)
        else:
            self.memory = StatisticsMemory(self.num_classes, self.channels)
            if context != "none":
                self.context_head = self.build_head(self.channels)
            # twice the channels if the image has its own context; 3x3 on ASPP, as in the published configurations
            channels = self.channels if context == "none" else 2 * self.channels
            if self.pyramid is None:
                self.head = self.build_head(channels, kernel_size=3 if context == "aspp" else 1)
            else:
                self.pyramid = self.build_pyramid(channels)

    def decode(self, maps: Sequence[Tensor]) -> NetworkOutputs:
        """Map the encoder's maps, fine to coarse, to outputs at the size of the classified features."""
        if self.memory is None:
            return super().decode(maps)
        within, intermediate = self.context(maps)
        features = within if self.representation is None else self.representation(maps[-1])  # R (N, C, h, w)
        class_logits = intermediate["context"] = self.class_head(features)
        if self.context_head is not None:
            class_logits = intermediate["image_context"] = self.context_head(within)
        # copies: a training step updates the memory before the backward pass, which needs the values read
        representations, seen = self.memory.representations(), self.memory.seen.clone()
        backward_memory = self.memory.memory if self.memory_gradient == "updated" else None

        def classify(class_logits: Tensor) -> Tensor:
            mixed = aggregate_representations(
                class_logits, representations, seen, hard=self.hard, backward_representations=backward_memory
            )
            augmented = self.dataset_context(features, mixed)
            if self.fusion is not None:
                augmented = self.fusion(features, within, augmented)
            elif self.context_head is not None:
                augmented = torch.cat([augmented, within], dim=1)
            return self.classify(maps, augmented)

        passes = [classify(class_logits)]
        while not self.training and len(passes) < self.inference_passes:
            agreed = self.grid.upsample(torch.stack(passes).mean(dim=0), class_logits.shape[-2:])
            weighted = _OWN_WEIGHT * class_logits + _PREVIOUS_WEIGHT * agreed
            # the authors' code divides by one less than the sum of the weights, which sharpens W
            passes.append(classify(weighted / (_OWN_WEIGHT + _PREVIOUS_WEIGHT - 1)))
        return NetworkOutputs(passes[-1], features, {**intermediate, **self.auxiliary(maps)})
