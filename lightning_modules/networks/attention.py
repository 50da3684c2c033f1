"""The attention block of MCIBI and OCRNet."""

from torch import Tensor, nn
from torch.nn import functional as F

from beyondpixel.lightning_modules.networks.layers import conv_norm_relu


class SelfAttentionBlock(nn.Module):
    r"""Attention from each position of a map to all positions of another one (MCIBI's refinement P; OCRNet's Eq. 4–6).

    .. math:: Y = o\big(\mathrm{softmax}(q(X)\, k(S)^T / \sqrt{d})\, v(S)\big)

    with X the queries, S the source, and d = `attention_channels`. q and k are two 1x1 convolutions each with
    BatchNorm and ReLU, v and o one each. Where `torch.nn.functional.scaled_dot_product_attention` has a fused kernel
    for device and dtype, the (HW, HW) matrix is never stored, neither in training nor in evaluation.

    Args:
        channels: channels of queries, source and result.
        attention_channels: d.

    Example:
        >>> import torch
        >>> block = SelfAttentionBlock(16, attention_channels=8)
        >>> block(torch.zeros(2, 16, 5, 7), torch.zeros(2, 16, 3, 1)).shape
        torch.Size([2, 16, 5, 7])
    """

    def __init__(self, channels: int, attention_channels: int) -> None:
        super().__init__()
        self.query = _projection(channels, attention_channels)
        self.key = _projection(channels, attention_channels)
        self.value = conv_norm_relu(channels, attention_channels)
        self.out = conv_norm_relu(attention_channels, channels)

    def forward(self, queries: Tensor, source: Tensor) -> Tensor:
        """Map (N, C, H, W) queries and a (N, C, h, w) source to (N, C, H, W)."""
        gathered = F.scaled_dot_product_attention(
            _tokens(self.query(queries)), _tokens(self.key(source)), _tokens(self.value(source))
        )  # (N, 1, HW, d)
        maps = gathered.squeeze(1).transpose(1, 2).reshape(len(queries), -1, *queries.shape[-2:])
        out: Tensor = self.out(maps)
        return out


def _projection(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(conv_norm_relu(in_channels, out_channels), conv_norm_relu(out_channels, out_channels))


def _tokens(maps: Tensor) -> Tensor:
    """Reshape (N, d, H, W) to (N, 1 head, HW, d)."""
    # the fused kernels need contiguous channels; otherwise torch falls back to the whole matrix
    return maps.flatten(2).transpose(1, 2).contiguous().unsqueeze(1)
