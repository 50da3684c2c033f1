"""MCIBI as a Lightning module: its losses and the updates of its memory."""

from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.lightning_modules.base import SegmentationModule
from beyondpixel.lightning_modules.networks import MCIBI, ClassificationHead, FeatureMemory
from beyondpixel.lightning_modules.schedules import annealed_momentum
from beyondpixel.losses.functional import cross_entropy
from beyondpixel.losses.functional.arguments import check_choice


class MCIBIModule(SegmentationModule):
    r"""FCN, PSPNet, DeepLabv3, OCRNet or UPerNet, with MCIBI, MCIBI++ or neither (Jin et al., ICCV 2021; TPAMI 2022).

    Maps images of any size to (N, num_classes, H, W) logits of the same size. Takes the arguments of
    `SegmentationModule` (loss, lr, ...), of `MCIBI` (context, memory, encoder, ...) and those of `configure_network`.
    Training minimizes

    .. math:: L = L_O + \alpha L_W + \beta L_{O^M} + \gamma L_{aux}

    L_O is `loss` on the prediction. The others are cross entropies: L_W on the coarse class logits that weight the
    memory's representations, L_{O^M} on the last head's logits of the memory's own representations (consistency), and
    L_aux on the encoder's second-to-last stage. MCIBI++ adds one, with weight 1, on the image's own context. Besides
    the terms of `loss`, logs `train/loss_context`, `train/loss_consistency`, `train/loss_auxiliary` and
    `train/loss_image_context`, unweighted, where they apply, and `train/memory_momentum` and
    `train/memory_seen_classes`. `val/loss` and `test/loss` are L_O alone.

    The memory is part of the network's state and its checkpoints. Only training steps change it: it is updated after
    the forward pass, once per optimizer step. With `accumulate_grad_batches` the update follows the last of the
    accumulated batches and uses all of them, so it equals that of one large batch.

    Example:
        >>> module = MCIBIModule(num_classes=4, encoder="resnet18", channels=32, attention_channels=16, loss="rmi")
        >>> module.eval()(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 4, 33, 47])
    """

    network: MCIBI

    def configure_network(
        self,
        *,
        memory_momentum: float = 0.9,
        memory_momentum_rule: Literal["poly", "lr", "constant"] = "poly",
        consistency_from_epoch: int | None = None,
        context_weight: float = 0.4,
        consistency_weight: float = 1.0,
        auxiliary_weight: float = 0.4,
        **network: Any,
    ) -> MCIBI:
        """Build the network, and store the options of its training.

        Args:
            memory_momentum: m_0 in M ← (1 − m) M + m R', in [0, 1]; MCIBI++ uses 0.1.
            memory_momentum_rule: "poly" anneals it from m_0 to m_0 / 100, see `annealed_momentum`; "lr" keeps its ratio
                to the learning rate, as the authors' code does; "constant" is MCIBI++'s.
            consistency_from_epoch: first epoch, counted from 0, with the consistency loss; null for none. The authors
                use it on ADE20K only, from 1.
            context_weight: α, weight of the cross entropy on the class logits that weight the memory.
            consistency_weight: β, weight of the consistency loss.
            auxiliary_weight: γ, weight of the auxiliary head's cross entropy; 0: no such head, unless "ocr" needs it.
            network: arguments of `MCIBI`.

        Raises:
            ValueError: for an argument out of range.
        """
        check_choice("memory_momentum_rule", memory_momentum_rule, ("poly", "lr", "constant"))
        if not 0 <= memory_momentum <= 1:
            raise ValueError(f"memory_momentum must be in [0, 1], got {memory_momentum}")
        if consistency_from_epoch is not None and network.get("memory") == "statistics":
            raise ValueError(
                "consistency_from_epoch must be null with memory='statistics': MCIBI++ has no consistency loss, since "
                "its representations are random draws"
            )
        self._momentum, self._momentum_rule = memory_momentum, memory_momentum_rule
        self._consistency_from_epoch = consistency_from_epoch
        self._weights = {
            "context": context_weight,
            "consistency": consistency_weight,
            "image_context": 1.0,
            "auxiliary": auxiliary_weight,
        }
        # features and labels of the batches since the last optimizer step
        self._pending_batches: list[tuple[Tensor, Tensor]] = []
        self._optimizer_step_follows = True
        return MCIBI(self.num_classes, auxiliary=auxiliary_weight > 0, **network)

    def on_train_start(self) -> None:  # noqa: D102
        super().on_train_start()
        self._pending_batches.clear()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: D102
        accumulated = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        self._optimizer_step_follows = accumulated or self.trainer.is_last_batch
        return super().training_step(batch, batch_idx)

    def logits_and_loss(self, images: Tensor, target: Tensor, stage: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute all losses in training; the memory is updated between forward pass and consistency loss."""
        if stage != "train":
            return super().logits_and_loss(images, target, stage)
        outputs = self.network.outputs(images)
        loss: Tensor = self.loss(outputs.logits, target)
        logged = self.loss_terms()
        terms = {
            name: cross_entropy(logits, target, ignore_index=self.ignore_index)
            for name, logits in outputs.intermediate.items()
        }
        if outputs.features is not None:
            logged |= self._update_memory(outputs.features, target)
            if self._consistency_from_epoch is not None and self.current_epoch >= self._consistency_from_epoch:
                terms["consistency"] = self._consistency()
        for name, term in terms.items():
            loss = loss + self._weights[name] * term
        return outputs.logits, loss, {**logged, **{f"loss_{name}": term for name, term in terms.items()}}

    def _update_memory(self, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Update the memory if an optimizer step follows this batch; return what to log."""
        grid, ignore_index = self.network.grid, self.ignore_index
        self._pending_batches.append((features.detach(), grid.pad_target(target, ignore_index=ignore_index)))
        momentum, memory = self._current_momentum(), cast(FeatureMemory, self.network.memory)
        if self._optimizer_step_follows:
            features, labels = _concatenated(self._pending_batches, stride=grid.stride, ignore_index=ignore_index)
            self._pending_batches.clear()
            strategy = self.network.update_strategy
            memory.update(features, labels, momentum=momentum, strategy=strategy, ignore_index=ignore_index)
        return {
            "memory_momentum": torch.tensor(momentum, device=self.device),
            "memory_seen_classes": memory.seen.any(dim=1).sum().float(),
        }

    def _current_momentum(self) -> float:
        if self._momentum_rule == "poly":
            return annealed_momentum(self.global_step, base=self._momentum, max_iters=self._max_iters)
        if self._momentum_rule == "lr":
            group = self.trainer.optimizers[0].param_groups[0]
            return self._momentum * float(group["lr"]) / float(group["initial_lr"])
        return self._momentum

    def _consistency(self) -> Tensor:
        """Cross entropy of the last head on the representations of seen classes; 0 if there are none."""
        memory, head = cast(FeatureMemory, self.network.memory), cast(ClassificationHead, self.network.head)
        logits, seen = head.classify_vectors(memory.representations().flatten(0, 1)), memory.seen  # (KS, K), (K, S)
        classes = torch.arange(self.num_classes, device=seen.device)[:, None].expand_as(seen)
        losses = F.cross_entropy(logits.float(), classes.flatten(), reduction="none") * seen.flatten()
        mean: Tensor = losses.sum() / seen.sum().clamp_min(1)
        return mean


def _concatenated(batches: list[tuple[Tensor, Tensor]], *, stride: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Concatenate batches; smaller maps are padded at the right and bottom, their labels with void."""
    height = max(features.shape[-2] for features, _ in batches)
    width = max(features.shape[-1] for features, _ in batches)
    padded = []
    for features, labels in batches:
        below, right = height - features.shape[-2], width - features.shape[-1]
        padded.append(
            (
                # upsampling replicates the border, too, so the values at labeled pixels do not change
                F.pad(features, (0, right, 0, below), mode="replicate"),
                F.pad(labels, (0, right * stride, 0, below * stride), value=ignore_index),
            )
        )
    features, labels = (torch.cat(parts) for parts in zip(*padded, strict=True))
    return features, labels
