"""Label maps on the CPU, their edges, and dilation of masks, with OpenCV."""

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Labels = NDArray[np.int16]  # (N, H, W), where void is a separate label
Mask = NDArray[np.bool_]  # (N, H, W)


def with_void(labels: Tensor, valid: Tensor, void: int) -> Labels:
    """Convert label maps (N, H, W) to an array in which all pixels that are not valid have the label `void`.

    Example:
        >>> with_void(torch.tensor([[[0, 7]]]), torch.tensor([[[True, False]]]), void=2).tolist()
        [[[0, 2]]]
    """
    array: Labels = labels.to(torch.int16).where(valid, void).cpu().numpy()
    return array


def edges(labels: Labels, *, corners: bool, image_border: bool = False) -> Mask:
    """Mark the pixels with a neighbor of another label, so that both sides of a boundary are edges.

    Args:
        labels: label maps, at least 0.
        corners: whether a pixel has eight neighbors, or the four above, below, left and right of it.
        image_border: whether the outside of the image counts as another label.

    Example:
        >>> edges(np.array([[[3, 3, 3, 5, 5]]], dtype=np.int16), corners=True).astype(int).tolist()
        [[[0, 0, 1, 1, 0]]]
    """
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT if corners else cv2.MORPH_CROSS, (3, 3))
    outside: dict[str, Any] = {"borderType": cv2.BORDER_CONSTANT, "borderValue": -1} if image_border else {}
    found = [cv2.dilate(image, kernel) != cv2.erode(image, kernel, **outside) for image in labels]
    return np.array(found, dtype=bool).reshape(labels.shape)


def dilate(mask: Mask, radius: float, *, euclidean: bool = False) -> Mask:
    """Mark the pixels at most `radius` away from a set one, in the chessboard metric or between the pixels' centers.

    With `near = edges(labels, corners=True)`, `dilate(near, r - 1)` marks pixels at most r away from another label (in
    the chessboard metric): a shortest path to it reaches the first change of labels after at most r - 1 steps.

    Example:
        >>> dilate(np.array([[[0, 0, 0, 1, 0]]], dtype=bool), radius=2).astype(int).tolist()
        [[[0, 1, 1, 1, 1]]]
    """
    squares = np.arange(-int(radius), int(radius) + 1) ** 2
    distances = squares[:, None] + squares
    kernel = (distances <= (radius**2 if euclidean else np.inf)).astype(np.uint8)
    dilated = [cv2.dilate(image, kernel) for image in mask.astype(np.uint8)]
    return np.array(dilated, dtype=bool).reshape(mask.shape)
