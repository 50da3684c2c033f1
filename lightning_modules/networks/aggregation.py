"""MCIBI's aggregation of class representations from beyond the image, and its fusion with the image's own features."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beyondpixel.lightning_modules.networks.layers import SelfAttentionBlock, conv_norm_relu


def aggregate_representations(
    class_logits: Tensor,
    representations: Tensor,
    seen: Tensor,
    *,
    hard: bool = False,
    backward_representations: Tensor | None = None,
) -> Tensor:
    r"""Mix the data set's class representations by each pixel's class probabilities (Jin et al., ICCV 2021).

    .. math:: W = \mathrm{softmax}_k(H_1(R)), \quad C_{n,s,:,i} = \sum_k W_{n,k,i}\, M_{k,s}

    Classes whose slot was never filled are excluded: W is the softmax over the others. Where no class was seen yet, the
    context is zero.

    Args:
        class_logits: (N, K, h, w), H1(R); they get a gradient unless `hard`.
        representations: (K, S, C), the memory M; constants.
        seen: (K, S) bool, which slots were ever filled.
        hard: give all weight to the most probable class instead.
        backward_representations: (K, S, C), replaces M in the gradient of W and is read when backward runs; None for
            `representations`. The authors' code updates its memory before backward: pass the memory's buffer for that.

    Returns:
        (N, S, C, h, w), the coarse context of each slot.

    Example:
        >>> logits = torch.tensor([0.0, 0.0, 9.0]).reshape(1, 3, 1, 1)
        >>> memory = torch.tensor([[[2.0]], [[4.0]], [[7.0]]])
        >>> aggregate_representations(logits, memory, torch.tensor([[True], [True], [False]])).item()
        3.0
    """
    filled = seen.T[None, :, :, None, None]  # (1, S, K, 1, 1)
    logits = class_logits[:, None].masked_fill(~filled, torch.finfo(class_logits.dtype).min)  # (N, S, K, h, w)
    if hard:
        weights = F.one_hot(logits.argmax(dim=2), seen.shape[0]).movedim(-1, 2).to(class_logits.dtype)
    else:
        weights = logits.softmax(dim=2)
    # only matters where no class is seen: there the weights are uniform
    weights = weights * filled
    if backward_representations is not None:
        mixed: Tensor = _MixWithLaterGradient.apply(weights, representations, backward_representations)
        return mixed
    return _mix(weights, representations)


def _mix(weights: Tensor, representations: Tensor) -> Tensor:
    return torch.einsum("nskhw,ksc->nschw", weights, representations.to(weights.dtype))


class _MixWithLaterGradient(torch.autograd.Function):
    """`_mix` whose gradient is computed with representations that may change between forward and backward."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, representations: Tensor, later: Tensor) -> Tensor:
        ctx.later = later  # not by save_for_backward, which rejects tensors that were changed in place
        return _mix(weights, representations)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return torch.einsum("nschw,ksc->nskhw", gradient, ctx.later.to(gradient.dtype)), None, None


class DatasetContext(nn.Module):
    r"""Augment pixel representations with the context of the data set.

    .. math:: C_{bi} = \mathrm{attention}(R, C), \quad R_{aug} = F(R, C_{bi})

    F is a concatenation and a 3x3 convolution. Attention over the coarse context C is MCIBI's refinement P: it moves
    context between positions, so that a pixel with a wrong W gets the context that other pixels agree on.

    Args:
        channels: C, channels of every map.
        attention_channels: channels of queries, keys and values.
        slots: S, number of coarse contexts; each has its own attention, and a 1x1 convolution fuses them if S > 1.
        refinement: whether to use the attention; without it (the ablation) the coarse context itself is fused.

    Example:
        >>> augment = DatasetContext(16, attention_channels=8, slots=2)
        >>> augment(torch.zeros(2, 16, 5, 7), torch.zeros(2, 2, 16, 5, 7)).shape
        torch.Size([2, 16, 5, 7])
    """

    def __init__(self, channels: int, *, attention_channels: int, slots: int = 1, refinement: bool = True) -> None:
        super().__init__()
        self.refinements = nn.ModuleList(
            SelfAttentionBlock(channels, attention_channels) for _ in range(slots if refinement else 0)
        )
        self.fuse_slots = conv_norm_relu(slots * channels, channels) if slots > 1 else nn.Identity()
        self.fuse = conv_norm_relu(2 * channels, channels, kernel_size=3)

    def forward(self, features: Tensor, coarse: Tensor) -> Tensor:
        """Fuse R (N, C, h, w) and the coarse contexts (N, S, C, h, w) into R_aug (N, C, h, w)."""
        if self.refinements:
            contexts = [refine(features, coarse[:, slot]) for slot, refine in enumerate(self.refinements)]
        else:
            contexts = list(coarse.unbind(dim=1))
        beyond = self.fuse_slots(torch.cat(contexts, dim=1))
        augmented: Tensor = self.fuse(torch.cat([features, beyond], dim=1))
        return augmented


class FusedContexts(nn.Module):
    r"""MCIBI's fusion with the image's own context: :math:`F'(\mathrm{attention}'(R, C_{wi}), R_{aug})`, with a 3x3 F'.

    Example:
        >>> features = torch.zeros(2, 16, 5, 7)
        >>> FusedContexts(16, attention_channels=8)(features, features, features).shape
        torch.Size([2, 16, 5, 7])
    """

    def __init__(self, channels: int, attention_channels: int) -> None:
        super().__init__()
        self.attention = SelfAttentionBlock(channels, attention_channels)
        self.fuse = conv_norm_relu(2 * channels, channels, kernel_size=3)

    def forward(self, features: Tensor, within: Tensor, augmented: Tensor) -> Tensor:
        """Fuse R, C_wi and R_aug, all (N, C, h, w), into (N, C, h, w)."""
        fused: Tensor = self.fuse(torch.cat([self.attention(features, within), augmented], dim=1))
        return fused
