"""The MCIBI authors' memory update the plain way: upsample all features, then loop over the classes. Slow, but plain.

The independent partner of the tests, and the yardstick of benchmarks/memory_update.py. It shares nothing with the
package. Where the authors' code divides 0 by 0, lets slots without pixels decay, or takes zeros for "empty", it does
what the package promises.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def upsampled_pixels(features: Tensor, target: Tensor) -> Tensor:
    """Features of every pixel, (N · H · W, C)."""
    full = F.interpolate(features, size=target.shape[1:], mode="bilinear", align_corners=False)
    return full.permute(0, 2, 3, 1).contiguous().view(-1, features.shape[1])


def direct_update(
    memory: Tensor,
    seen: Tensor,
    features: Tensor,
    target: Tensor,
    *,
    momentum: float,
    strategy: str = "cosine",
    ignore_index: int = 255,
) -> tuple[Tensor, Tensor]:
    """New memory (K, S, C) and which slots hold something (K, S); in the dtype of the features."""
    before = memory.to(features.dtype)
    memory, seen = before.clone(), seen.clone()
    labels = target.reshape(-1).long()
    pixels = upsampled_pixels(features, target)
    for label in labels.unique().tolist():
        if label == ignore_index:
            continue
        own = pixels[labels == label]
        empty = [slot for slot in range(memory.shape[1]) if not seen[label, slot]]
        if empty:
            memory[label, empty[0]] = own.mean(0)
            seen[label, empty[0]] = True
        elif strategy == "mean":
            memory[label] = (1 - momentum) * memory[label] + momentum * own.mean(0)
        else:
            for slot, part in enumerate(nearest_pixels(own, memory[label])):
                if len(part) > 0:
                    memory[label, slot] *= 1 - momentum
                    memory[label, slot] += momentum * weighted_mean(part, before[label, slot])
    return memory, seen


def nearest_pixels(pixels: Tensor, slots: Tensor) -> list[Tensor]:
    """The pixels of a class, shared out among its slots."""
    if len(slots) == 1:
        return [pixels]
    nearest = (F.normalize(pixels, dim=1) @ F.normalize(slots, dim=1).T).argmax(1)
    return [pixels[nearest == slot] for slot in range(len(slots))]


def weighted_mean(pixels: Tensor, reference: Tensor) -> Tensor:
    """Σ w r with w = (1 - cos) / Σ (1 - cos); the mean if all are exact matches."""
    weights = 1 - F.cosine_similarity(pixels, reference.expand_as(pixels))
    if weights.sum() < 1e-13 * len(pixels):
        return pixels.mean(0)
    return (pixels * (weights / weights.sum())[:, None]).sum(0)


def direct_statistics(memory: Tensor, features: Tensor, target: Tensor, *, momentum: float) -> Tensor:
    """MCIBI++: new (K, 2) of mean and standard deviation."""
    memory = memory.to(features.dtype).clone()
    labels = target.reshape(-1)
    pixels = upsampled_pixels(features, target)
    for k in range(len(memory)):
        if (labels == k).any():
            vector = pixels[labels == k].mean(0)
            centered = vector - vector.mean()
            deviation = (centered.square().sum() / (len(vector) - 1)).sqrt()
            memory[k] = (1 - momentum) * memory[k] + momentum * torch.stack([vector.mean(), deviation])
    return memory
