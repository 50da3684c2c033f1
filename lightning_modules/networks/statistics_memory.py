"""The memory of MCIBI++: the mean and standard deviation of each class's features."""

from typing import Literal

import torch
from torch import Tensor

from beyondpixel.lightning_modules.networks.class_means import class_means
from beyondpixel.lightning_modules.networks.class_memory import ClassMemory
from beyondpixel.losses.functional.arguments import check_range


class StatisticsMemory(ClassMemory):
    """The memory of MCIBI++ (Jin et al., "MCIBI++", TPAMI 2022), as in the authors' code: two numbers per class.

    `update` averages the upsampled features of each class's pixels to one vector of C channels, and takes the mean μ'
    and standard deviation σ' (with C − 1) of its C values:

        μ ← (1 − m) μ + m μ',    σ ← (1 − m) σ + m σ'

    starting from μ = 0 and σ = 1, without annealing. `representations` draws C values from Normal(μ, σ) for each class,
    with a private generator seeded with the class index, so the draws are the same every time, on every device and
    process, and PyTorch's global random state does not change. (The authors' code seeds it in every forward pass.)

    It has the methods of `FeatureMemory` and the same behavior for void pixels, absent classes, non-finite features,
    and several processes, whose class sums are added before the statistics are computed.

    Args:
        num_classes: K.
        channels: C of the features, at least 2.

    Attributes:
        memory: buffer (K, 2) float32, μ and σ.
        seen: buffer (K, 1) bool, which classes have been seen; all others are still (0, 1).
        slots: 1.

    Raises:
        ValueError: for a number too small.

    Example:
        >>> memory = StatisticsMemory(num_classes=2, channels=4)
        >>> features = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
        >>> memory.update(features, torch.zeros(1, 8, 8, dtype=torch.long), momentum=0.5)
        >>> [round(value, 4) for value in memory.memory.flatten().tolist()], memory.representations().shape
        ([1.25, 1.1455, 0.0, 1.0], torch.Size([2, 1, 4]))
    """

    _noise: Tensor

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__(num_classes, channels)
        check_range("channels", channels, 2)
        # drawn on the CPU, whose generator gives the same numbers on every machine
        generators = [torch.Generator().manual_seed(k) for k in range(num_classes)]
        noise = [torch.randn(1, channels, generator=generator, device="cpu") for generator in generators]
        self.register_buffer("memory", torch.tensor([0.0, 1.0], dtype=torch.float32).repeat(num_classes, 1))
        self.register_buffer("_noise", torch.stack(noise).to(self.memory.device), persistent=False)

    def representations(self) -> Tensor:
        """Draw (K, 1, C) float32 from Normal(μ, σ) of each class; equal draws for equal μ and σ."""
        mean, std = self.memory[:, :, None, None].unbind(dim=1)
        return mean + std * self._noise

    @torch.no_grad()
    def update(
        self,
        features: Tensor,
        target: Tensor,
        *,
        momentum: float = 0.1,
        strategy: Literal["mean"] = "mean",
        ignore_index: int = 255,
    ) -> None:
        """Move the statistics towards those of a batch; see the class for the equation.

        Args:
            features: (N, C, h, w) at the network's stride, any floating-point type and memory format.
            target: (N, H, W) integer labels, at full size.
            momentum: m in [0, 1], the weight of the batch.
            strategy: only "mean": there is no vector to compute cosines with.
            ignore_index: label of the void pixels.

        Raises:
            TypeError: for features that are not floating point, or labels that are not integers.
            ValueError: for shapes, devices or labels that do not match, a momentum out of range, or another strategy.
                The memory is then unchanged.
        """
        if strategy != "mean":
            raise ValueError(
                f"strategy: expected 'mean', got {strategy!r}; two numbers per class have no direction to compare. "
                "FeatureMemory offers 'cosine'"
            )
        self.check_batch(features, target, momentum)
        means, present = class_means(features, target, self.num_classes, ignore_index=ignore_index)  # (K, 1, C), (K, 1)
        std, mean = torch.std_mean(means[:, 0], dim=1)
        moved = (1 - momentum) * self.memory.double() + momentum * torch.stack([mean, std], dim=1)
        self.write(torch.where(present, moved.float(), self.memory), self.seen | present, target, ignore_index)

    def extra_repr(self) -> str:
        """Sizes, for `print(module)`."""
        return f"{self.num_classes}, {self.channels}"
