"""Layers that several networks share, and their initialization."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias that keeps the size, BatchNorm, ReLU.

    Example:
        >>> conv_norm_relu(3, 8, kernel_size=3, dilation=2)(torch.zeros(2, 3, 5, 7)).shape
        torch.Size([2, 8, 5, 7])
    """
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class ClassificationHead(nn.Module):
    """Convolution, BatchNorm, ReLU, dropout of whole channels, 1x1 convolution: MCIBI's H1, H2 and auxiliary head.

    Args:
        in_channels: channels of the representations.
        channels: channels between the convolutions.
        num_classes: K.
        kernel_size: of the first convolution: 1 or 3.
        dropout: dropout probability.

    Example:
        >>> head = ClassificationHead(16, 8, num_classes=3).eval()
        >>> head(torch.zeros(2, 16, 5, 7)).shape, head.classify_vectors(torch.zeros(4, 16)).shape
        (torch.Size([2, 3, 5, 7]), torch.Size([4, 3]))
    """

    def __init__(
        self, in_channels: int, channels: int, num_classes: int, *, kernel_size: int = 1, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, h, w) to logits (N, K, h, w)."""
        logits: Tensor = self.classifier(self.dropout(F.relu(self.norm(self.conv(features)))))
        return logits

    def classify_vectors(self, vectors: Tensor) -> Tensor:
        """Map (M, C) to logits (M, K), always as in evaluation: a few vectors are too few for batch statistics.

        BatchNorm uses its running statistics without updating them, and there is no dropout; gradients flow.
        """
        norm = self.norm
        # copies: the next batch changes the originals, maybe before the backward pass
        mean, variance = (torch.clone(statistic) for statistic in (norm.running_mean, norm.running_var))  # type: ignore[arg-type]
        hidden = self.conv(vectors[:, :, None, None].to(norm.weight.dtype))
        hidden = F.batch_norm(hidden, mean, variance, norm.weight, norm.bias, training=False, eps=norm.eps)
        logits: Tensor = self.classifier(F.relu(hidden))
        return logits.flatten(1)


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
        maps = gathered.squeeze(1).transpose(1, 2).reshape(len(queries), gathered.shape[-1], *queries.shape[-2:])
        out: Tensor = self.out(maps)
        return out


def _projection(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(conv_norm_relu(in_channels, out_channels), conv_norm_relu(out_channels, out_channels))


def _tokens(maps: Tensor) -> Tensor:
    """Reshape (N, d, H, W) to (N, 1 head, HW, d)."""
    # the fused kernels need contiguous channels; otherwise torch falls back to the whole matrix
    return maps.flatten(2).transpose(1, 2).contiguous().unsqueeze(1)


def initialize_head(part: nn.Module) -> None:
    """Initialize convolutions as He et al. (ICCV 2015) do, with the fan-in, and their biases with zeros.

    Example:
        >>> convolution = nn.Conv2d(3, 8, kernel_size=3)
        >>> initialize_head(convolution)
        >>> convolution.bias.abs().sum().item()
        0.0
    """
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_norm_momentum(network: nn.Module, momentum: float | None) -> None:
    """Set the momentum of every BatchNorm; None keeps torch's 0.1.

    Raises:
        ValueError: if it is not in (0, 1].

    Example:
        >>> norm = nn.BatchNorm2d(4)
        >>> set_norm_momentum(norm, 0.05)
        >>> norm.momentum
        0.05
    """
    if momentum is None:
        return
    if not 0 < momentum <= 1:
        raise ValueError(f"norm_momentum must be in (0, 1], got {momentum}")
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum
