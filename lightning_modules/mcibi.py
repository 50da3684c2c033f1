"""MCIBI as a Lightning module: what its network is, what supervises it, and when the memory updates."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beyondpixel.lightning_modules.base import SegmentationModule
from beyondpixel.lightning_modules.networks import MCIBI
from beyondpixel.lightning_modules.schedules import annealed_momentum
from beyondpixel.losses.functional import cross_entropy

_STRATEGIES = ("cosine", "mean")
_RULES = ("poly", "lr", "constant")


class MCIBIModule(SegmentationModule):
    r"""FCN, PSPNet, DeepLabv3, OCRNet or UPerNet, with MCIBI, MCIBI++ or neither (Jin et al., ICCV 2021; TPAMI 2022).

    Images of any size in, (N, num_classes, H, W) logits of the same size out. Training minimises

    .. math:: L = L_O + \alpha L_W + \beta L_{O^M} + \gamma L_{aux}

    L_O is ``loss`` on the prediction. Cross entropies are L_W, on the coarse class logits that weigh the memory's
    representations; L_{O^M}, on what the last head makes of the memory's own representations (consistency); and L_aux,
    on the encoder's last stage but one. MCIBI++ adds one, with weight 1, on the image's own context. Logged beside the
    terms of ``loss`` are ``train/loss_context``, ``train/loss_consistency``, ``train/loss_auxiliary`` and
    ``train/loss_image_context``, unweighted, where they apply, and ``train/memory_momentum`` and
    ``train/memory_seen_classes``. ``val/loss`` and ``test/loss`` are L_O alone.

    The memory is part of the network's state: checkpoints hold it. Nothing but a training step changes it: the forward
    pass reads it as it was, then it is updated, once an optimiser step. With ``accumulate_grad_batches`` the update
    waits for the last of the accumulated batches and uses them all, so it is that of one large batch.

    Args:
        num_classes: K, at least 2.
        context: the image's own context: "none" (FCN), "ppm" (PSPNet), "aspp" (DeepLabv3), "ocr" (OCRNet) or
            "upernet" (UPerNet).
        memory: "features" (MCIBI: representations of each class), "statistics" (MCIBI++: a mean and a standard
            deviation of each class), or null for the plain network, which then has nothing that MCIBI adds.
        encoder, encoder_weights, output_stride: as in :class:`DeepLabModule`.
        channels, attention_channels: widths of the head, 512 and 256 in the papers.
        slots: representations a class.
        aggregation: "soft", or "hard" for the most probable class alone.
        refinement: whether attention over the image refines what the memory gives (the paper's P).
        initialization: "mean" (the authors' code) or "random_pixel" (their text): a class's first representation.
        update_strategy: "cosine", where pixels weigh more that are less like the memory, or "mean".
        memory_momentum: m_0 in M ← (1 − m) M + m R'; MCIBI++ has 0.1.
        memory_momentum_rule: "poly" anneals it from m_0 to m_0 / 100, see
            :func:`~beyondpixel.lightning_modules.schedules.annealed_momentum`; "lr" keeps its ratio to the learning
            rate, as the authors' code does; "constant" is MCIBI++'s.
        consistency_from_epoch: first epoch, counted from 0, with the consistency loss; null for none. The authors have
            it on ADE20K alone, from 1.
        context_weight, consistency_weight, auxiliary_weight: α, β and γ; no auxiliary head is built for γ = 0, unless
            "ocr" needs it.
        inference_passes: aggregations in evaluation, from coarse to fine (MCIBI++).
        atrous_rates, dropout, norm_momentum: as in :class:`DeepLabModule`.
        kwargs: those of :class:`SegmentationModule`: ignore_index, class_names, loss, lr, ...

    Raises:
        ValueError: for an argument out of range, an unknown encoder, or one that cannot be dilated.

    Example:
        >>> module = MCIBIModule(num_classes=4, encoder="resnet18", channels=32, attention_channels=16, loss="rmi")
        >>> module.eval()(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 4, 33, 47])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        context: Literal["none", "ppm", "aspp", "ocr", "upernet"] = "aspp",
        memory: Literal["features", "statistics"] | None = "features",
        encoder: str = "resnet101s",
        encoder_weights: str | None = None,
        output_stride: Literal[8, 16] = 8,
        channels: int = 512,
        attention_channels: int = 256,
        slots: int = 1,
        aggregation: Literal["soft", "hard"] = "soft",
        refinement: bool = True,
        initialization: Literal["mean", "random_pixel"] = "mean",
        update_strategy: Literal["cosine", "mean"] = "cosine",
        memory_momentum: float = 0.9,
        memory_momentum_rule: Literal["poly", "lr", "constant"] = "poly",
        consistency_from_epoch: int | None = None,
        context_weight: float = 0.4,
        consistency_weight: float = 1.0,
        auxiliary_weight: float = 0.4,
        inference_passes: int = 1,
        atrous_rates: Sequence[int] | None = None,
        dropout: float = 0.1,
        norm_momentum: float | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value, choices in (
            ("update_strategy", update_strategy, _STRATEGIES),
            ("memory_momentum_rule", memory_momentum_rule, _RULES),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        if not 0 < memory_momentum <= 1:
            raise ValueError(f"memory_momentum must be in (0, 1], got {memory_momentum}")
        if consistency_from_epoch is not None and memory == "statistics":
            raise ValueError(
                "consistency_from_epoch must be null with memory='statistics': MCIBI++ has no consistency loss, since "
                "its representations are random draws"
            )
        if update_strategy == "mean" and slots > 1:
            raise ValueError(
                f"update_strategy must be 'cosine' with slots={slots}: a plain mean does not say which slot a pixel "
                "belongs to"
            )
        super().__init__(num_classes, **kwargs)
        self._weights = {"context": context_weight, "image_context": 1.0, "auxiliary": auxiliary_weight}
        # features and labels of the batches since the last optimiser step
        self._unremembered: list[tuple[Tensor, Tensor]] = []
        self._steps_after_batch = True

    def configure_network(self) -> nn.Module:
        """Build the network that the hyper-parameters describe."""
        names = (
            "num_classes",
            "context",
            "memory",
            "encoder",
            "encoder_weights",
            "output_stride",
            "channels",
            "attention_channels",
            "slots",
            "aggregation",
            "refinement",
            "initialization",
            "atrous_rates",
            "dropout",
            "norm_momentum",
            "inference_passes",
        )
        auxiliary = self.hparams["auxiliary_weight"] > 0
        return MCIBI(**{name: self.hparams[name] for name in names}, auxiliary=auxiliary)

    def on_train_start(self) -> None:  # noqa: D102
        super().on_train_start()
        self._unremembered.clear()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: D102
        accumulated = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        self._steps_after_batch = accumulated or self.trainer.is_last_batch
        return super().training_step(batch, batch_idx)

    def logits_and_loss(self, images: Tensor, target: Tensor, stage: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """In training, all losses; the memory is updated after the forward pass and before the consistency loss."""
        if stage != "train":
            return super().logits_and_loss(images, target, stage)
        network: Any = self.network
        outputs = network.outputs(images)
        loss: Tensor = self.loss(outputs.logits, target)
        terms = {
            name: cross_entropy(logits, target, ignore_index=self.ignore_index)
            for name, logits in outputs.intermediate.items()
        }
        logged = self.loss_terms()
        for name, term in terms.items():
            loss = loss + self._weights[name] * term
        if network.memory is not None:
            logged |= self._remember(outputs.features, target)
            first_epoch = self.hparams["consistency_from_epoch"]
            if first_epoch is not None and self.current_epoch >= first_epoch:
                terms["consistency"] = self._consistency()
                loss = loss + self.hparams["consistency_weight"] * terms["consistency"]
        return outputs.logits, loss, {**logged, **{f"loss_{name}": term for name, term in terms.items()}}

    def _remember(self, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Update the memory if this batch is followed by an optimiser step; what to log."""
        network: Any = self.network
        labels = network.grid.pad_target(target, ignore_index=self.ignore_index)
        self._unremembered.append((features.detach(), labels))
        momentum = self._momentum()
        if self._steps_after_batch:
            features, labels = _joined(self._unremembered, stride=network.grid.stride, ignore_index=self.ignore_index)
            self._unremembered.clear()
            strategy = {} if self.hparams["memory"] == "statistics" else {"strategy": self.hparams["update_strategy"]}
            network.memory.update(features, labels, momentum=momentum, ignore_index=self.ignore_index, **strategy)
        return {
            "memory_momentum": torch.tensor(momentum, device=self.device),
            "memory_seen_classes": network.memory.seen.any(dim=1).sum().float(),
        }

    def _momentum(self) -> float:
        base: float = self.hparams["memory_momentum"]
        rule = self.hparams["memory_momentum_rule"]
        if rule == "poly":
            return annealed_momentum(self.global_step, base=base, max_iters=self._max_iters)
        if rule == "lr":
            group = self.trainer.optimizers[0].param_groups[0]
            return base * float(group["lr"]) / float(group["initial_lr"])
        return base

    def _consistency(self) -> Tensor:
        """Cross entropy of the last head on the representations of seen classes; 0 if there are none."""
        network: Any = self.network
        representations, seen = network.memory.representations(), network.memory.seen  # (K, S, C), (K, S)
        logits = network.head.classify_vectors(representations.flatten(0, 1))  # (KS, K)
        classes = torch.arange(self.num_classes, device=seen.device)[:, None].expand_as(seen)
        losses = F.cross_entropy(logits.float(), classes.flatten(), reduction="none") * seen.flatten()
        mean: Tensor = losses.sum() / seen.sum().clamp_min(1)
        return mean


def _joined(batches: list[tuple[Tensor, Tensor]], *, stride: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """One batch of several; smaller maps are padded right and below, where their labels are void."""
    height = max(features.shape[-2] for features, _ in batches)
    width = max(features.shape[-1] for features, _ in batches)
    padded = []
    for features, labels in batches:
        below, right = height - features.shape[-2], width - features.shape[-1]
        padded.append(
            (
                # upsampling repeats the border too, so that the values at labelled pixels stay what they are
                F.pad(features, (0, right, 0, below), mode="replicate"),
                F.pad(labels, (0, right * stride, 0, below * stride), value=ignore_index),
            )
        )
    features, labels = (torch.cat(parts) for parts in zip(*padded, strict=True))
    return features, labels
