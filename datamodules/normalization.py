"""Normalization of 8-bit batches, on the device that holds them."""

from typing import Any

import torch

Batch = dict[str, Any]
Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
# mean and standard deviation by name: Inception's are those of timm's `tf_` EfficientNets as well
NORMALIZATIONS: dict[str, tuple[Triple, Triple]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class Normalization:
    """Scale images to 0..1, subtract the mean, divide by the standard deviation; masks become int64.

    Images that are already normalized (by their dtype) are unchanged.

    Args:
        mean: RGB mean of images scaled to 0..1.
        std: RGB standard deviation of images scaled to 0..1.

    >>> normalize = Normalization(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    >>> batch = {"image": torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)}
    >>> normalize(batch)["image"].flatten().tolist()
    [2.0, 2.0, 2.0]
    """

    def __init__(self, mean: Triple, std: Triple) -> None:
        # one multiplication and one subtraction per value: x * 1/(255 std) - mean/std
        self._factor = torch.tensor(std).mul(255).reciprocal().view(3, 1, 1)
        self._shift = (torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1)

    def __call__(self, batch: Batch) -> Batch:
        """Convert image uint8 (N, 3, H, W) to float32, mask uint8 (N, H, W) to int64; other entries are unchanged."""
        normalized, image = dict(batch), batch["image"]
        if image.dtype == torch.uint8:
            self._factor, self._shift = self._factor.to(image.device), self._shift.to(image.device)
            # the loader stacks channels last, as images are decoded; models get the usual layout
            floats = image.to(torch.float32, memory_format=torch.contiguous_format)
            normalized["image"] = floats.mul_(self._factor).sub_(self._shift)
        if "mask" in batch:
            normalized["mask"] = batch["mask"].long()
        return normalized
