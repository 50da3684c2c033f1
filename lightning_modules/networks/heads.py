"""From pixel representations to classes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ClassificationHead(nn.Module):
    """Convolution, BatchNorm, ReLU, dropout of whole channels, 1x1 convolution: MCIBI's H1, H2 and auxiliary head.

    Args:
        in_channels: those of the representations.
        channels: those between the convolutions.
        num_classes: K.
        kernel_size: of the first convolution: 1, or 3 for the auxiliary head.
        dropout: probability.

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
        """From (N, C, h, w) to logits (N, K, h, w)."""
        logits: Tensor = self.classifier(self.dropout(F.relu(self.norm(self.conv(features)))))
        return logits

    def classify_vectors(self, vectors: Tensor) -> Tensor:
        """From (M, C) to logits (M, K), always as in evaluation: a few vectors are no batch to take statistics from.

        BatchNorm uses its running statistics and leaves them as they are, and nothing is dropped; gradients flow.
        """
        norm = self.norm
        # copies: the next batch changes the originals, maybe before the backward pass
        mean, variance = (torch.clone(statistic) for statistic in (norm.running_mean, norm.running_var))  # type: ignore[arg-type]
        hidden = self.conv(vectors[:, :, None, None])
        hidden = F.batch_norm(hidden, mean, variance, norm.weight, norm.bias, training=False, eps=norm.eps)
        logits: Tensor = self.classifier(F.relu(hidden))
        return logits.flatten(1)
