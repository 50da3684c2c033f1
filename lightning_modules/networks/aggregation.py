"""What a pixel learns from the whole data set: MCIBI's aggregation of class representations, and its refinement."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beyondpixel.lightning_modules.networks.attention import SelfAttentionBlock
from beyondpixel.lightning_modules.networks.layers import conv_norm_relu


def aggregate_representations(
    class_logits: Tensor, representations: Tensor, seen: Tensor, *, hard: bool = False
) -> Tensor:
    r"""Mix the data set's class representations by what each pixel probably is (Jin et al., ICCV 2021).

    .. math:: W = \mathrm{softmax}_k(H_1(R)), \quad C_{n,s,:,i} = \sum_k W_{n,k,i}\, M_{k,s}

    Classes whose slot was never filled take no part: W is the softmax over the others. Where nothing was seen yet the
    context is zero.

    Args:
        class_logits: (N, K, h, w), H1(R); they get a gradient unless ``hard``.
        representations: (K, S, C), the memory M; constants.
        seen: (K, S) bool, which of them were ever filled.
        hard: give all weight to the most probable class instead.

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
    return torch.einsum("nskhw,ksc->nschw", weights, representations.to(weights.dtype))


class DatasetContext(nn.Module):
    r"""Augment pixel representations with the context of the data set and, if there is one, of their own image.

    .. math::
        C_{bi} = \mathrm{attention}(R, C), \quad R_{aug} = F(R, C_{bi}), \quad
        R_{aug} = F'(\mathrm{attention}'(R, C_{wi}), F(R, C_{bi}))

    F and F' concatenate and convolve 3x3. The attention over the coarse context C is MCIBI's refinement P: it moves
    context between positions, so that a pixel whose W is wrong gets what others in the image agree on.

    Args:
        channels: C, those of every map.
        attention_channels: those of queries, keys and values.
        slots: S, coarse contexts; each has an attention of its own, and a 1x1 convolution fuses them if S > 1.
        refinement: without it (the ablation) the coarse context itself is fused.
        within_image: whether there is an image's own context to fuse.

    Example:
        >>> augment = DatasetContext(16, attention_channels=8, slots=2, within_image=True)
        >>> features = torch.zeros(2, 16, 5, 7)
        >>> augment(features, torch.zeros(2, 2, 16, 5, 7), within=features).shape
        torch.Size([2, 16, 5, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        attention_channels: int,
        slots: int = 1,
        refinement: bool = True,
        within_image: bool = False,
    ) -> None:
        super().__init__()
        self.refinements = nn.ModuleList(
            SelfAttentionBlock(channels, attention_channels) for _ in range(slots if refinement else 0)
        )
        self.fuse_slots = conv_norm_relu(slots * channels, channels) if slots > 1 else nn.Identity()
        self.fuse = conv_norm_relu(2 * channels, channels, kernel_size=3)
        self.within_attention = SelfAttentionBlock(channels, attention_channels) if within_image else None
        self.fuse_within = conv_norm_relu(2 * channels, channels, kernel_size=3) if within_image else None

    def forward(self, features: Tensor, coarse: Tensor, within: Tensor | None = None) -> Tensor:
        """Fuse R (N, C, h, w), the coarse contexts (N, S, C, h, w) and C_wi (N, C, h, w) to R_aug (N, C, h, w)."""
        if self.refinements:
            contexts = [refine(features, coarse[:, slot]) for slot, refine in enumerate(self.refinements)]
        else:
            contexts = list(coarse.unbind(dim=1))
        beyond = self.fuse_slots(torch.cat(contexts, dim=1))
        augmented: Tensor = self.fuse(torch.cat([features, beyond], dim=1))
        if self.within_attention is not None and self.fuse_within is not None:
            if within is None:
                raise ValueError("within is None, but DatasetContext was made with within_image=True: pass the context")
            augmented = self.fuse_within(torch.cat([self.within_attention(features, within), augmented], dim=1))
        return augmented
