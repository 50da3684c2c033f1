"""Label maps: what is a valid one, and how many pixels of each class it holds."""

import torch
from torch import Tensor


def check_labels(preds: Tensor, target: Tensor, *, num_classes: int, ignore_index: int) -> None:
    """Refuse maps that cannot be scored.

    Args:
        preds: (N, H, W) integer classes.
        target: (N, H, W) integer labels: 0..C-1 or ``ignore_index``.
        num_classes: C.
        ignore_index: label of void pixels.

    Raises:
        ValueError: if shapes differ or a label of the truth is out of range.
    """
    if preds.shape != target.shape:
        raise ValueError(
            f"preds and target must have one shape, (N, H, W), got {tuple(preds.shape)} and {tuple(target.shape)}"
        )
    wrong = (target != ignore_index) & ((target < 0) | (target >= num_classes))
    if wrong.any():
        raise ValueError(
            f"target holds the labels {sorted(set(target[wrong].tolist()))}, but allowed are "
            f"0..{num_classes - 1} and ignore_index={ignore_index}"
        )


def pixels_per_class(labels: Tensor, where: Tensor, num_classes: int) -> Tensor:
    """Number of selected pixels of each class, image by image.

    Args:
        labels: (N, H, W) integers, 0..C-1 where selected.
        where: (N, H, W) bool.
        num_classes: C.

    Returns:
        (N, C) int64.

    Example:
        >>> labels = torch.tensor([[[0, 2, 2]], [[1, 0, 0]]])
        >>> pixels_per_class(labels, where=labels != 0, num_classes=3).tolist()
        [[0, 0, 2], [0, 1, 0]]
    """
    images = len(labels)
    bins = images * num_classes
    offsets = num_classes * torch.arange(images, device=labels.device)
    # a bin for all that is not selected: picking pixels by a mask takes far longer than counting all of them
    flat = (labels.long() + offsets[:, None, None]).where(where, bins)
    return torch.bincount(flat.flatten(), minlength=bins + 1)[:bins].reshape(images, num_classes)


def image_areas(preds: Tensor, target: Tensor, *, num_classes: int, ignore_index: int) -> Tensor:
    """Valid pixels of each class that are right, predicted so, and truly so, image by image.

    Args:
        preds: (N, H, W) integer classes.
        target: (N, H, W) integer labels.
        num_classes: C.
        ignore_index: label of void pixels, which are in none.

    Returns:
        (3, N, C) int64: intersection, predicted, truth.

    Example:
        >>> preds, target = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 255]]])
        >>> image_areas(preds, target, num_classes=2, ignore_index=255)[:, 0].tolist()
        [[1, 1], [2, 1], [1, 2]]
    """
    valid = target != ignore_index
    return torch.stack(
        [
            pixels_per_class(target, valid & (preds == target), num_classes),
            pixels_per_class(preds, valid, num_classes),
            pixels_per_class(target, valid, num_classes),
        ]
    )
