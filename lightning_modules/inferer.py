"""The interface of inference strategies: sliding windows, test-time augmentation, post-processing.

An inferer computes logits for a batch of normalized images with a network that maps images to logits. It may call the
network any number of times, on crops or rescaled images, and combine the results. Set one on a trained module, and
validation, test and prediction use it instead of one forward pass (MONAI's term and calling convention):

    >>> import torch
    >>> from torch import nn
    >>> from beyondpixel.lightning_modules import SegmentationModule
    >>> class Pixelwise(SegmentationModule):
    ...     def configure_network(self) -> nn.Module:
    ...         return nn.Conv2d(3, self.num_classes, kernel_size=1)
    >>> def flip(images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
    ...     passes = torch.stack([network(images), network(images.flip(-1)).flip(-1)])
    ...     return passes.softmax(dim=2).mean(dim=0).log()
    >>> module = Pixelwise(num_classes=4).eval()
    >>> module.inferer = flip
    >>> module.infer(torch.zeros(1, 3, 5, 6)).shape
    torch.Size([1, 4, 5, 6])
"""

from collections.abc import Callable

from torch import Tensor

__all__ = ["Inferer"]

Inferer = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
"""(normalized images (N, 3, H, W), network) to logits (N, C, H, W): log-probabilities where passes are averaged."""
