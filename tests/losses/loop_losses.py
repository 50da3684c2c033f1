"""The other losses in NumPy float64, pixel by pixel, from the equations."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def loop_cross_entropy(logits: Array, labels: Labels, ignore: int = 255) -> float:
    probs, losses = softmax(logits), []
    for n, y, x in np.ndindex(labels.shape):
        if labels[n, y, x] != ignore:
            losses.append(-math.log(probs[n, labels[n, y, x], y, x]))
    return sum(losses) / max(len(losses), 1)


def loop_binary_cross_entropy(logits: Array, labels: Labels, ignore: int = 255) -> float:
    total, count = 0.0, 0
    for n, y, x in np.ndindex(labels.shape):
        if labels[n, y, x] == ignore:
            continue
        count += 1
        for c in range(logits.shape[1]):
            p = 1 / (1 + math.exp(-logits[n, c, y, x]))
            total -= math.log(p if labels[n, y, x] == c else 1 - p)
    return total / (count + 1)


def loop_pyramid(logits: Array, labels: Labels, ignore: int = 255) -> float:
    losses = []
    for scale in (0.25, 0.5, 0.75, 1.0):
        height, width = int(scale * labels.shape[1]), int(scale * labels.shape[2])
        small = resize(logits, height, width, aligned=False)
        losses.append(loop_cross_entropy(small, nearest(labels, height, width), ignore))
    return sum(losses) / 4


def nearest(labels: Labels, height: int, width: int) -> Labels:
    rows = [i * labels.shape[1] // height for i in range(height)]
    columns = [j * labels.shape[2] // width for j in range(width)]
    return labels[:, rows][:, :, columns]


def resize(maps: Array, height: int, width: int, *, aligned: bool) -> Array:
    """Bilinear, with the corners of the maps or of their corner pixels aligned."""
    full_height, full_width = maps.shape[2:]
    small = np.empty((*maps.shape[:2], height, width))
    for i, j in np.ndindex(height, width):
        if aligned:
            y, x = i * (full_height - 1) / max(height - 1, 1), j * (full_width - 1) / max(width - 1, 1)
        else:
            y, x = (i + 0.5) * full_height / height - 0.5, (j + 0.5) * full_width / width - 0.5
        y, x = max(y, 0.0), max(x, 0.0)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, full_height - 1), min(left + 1, full_width - 1)
        fy, fx = y - top, x - left
        above = maps[:, :, top, left] * (1 - fx) + maps[:, :, top, right] * fx
        below = maps[:, :, bottom, left] * (1 - fx) + maps[:, :, bottom, right] * fx
        small[:, :, i, j] = above * (1 - fy) + below * fy
    return small


def loop_affinity(
    logits: Array,
    labels: Labels,
    *,
    stride: int,
    distance: int,
    exclude_void: bool,
    weights: tuple[Array, Array] | None = None,
    ignore: int = 255,
) -> float:
    """The affinity term; weights (edge, same) of each class, if any."""
    height, width = labels.shape[1] // stride, labels.shape[2] // stride
    probs = softmax(resize(logits, height, width, aligned=True))
    small = nearest(labels, height, width)
    edges, others = [], []
    for n, y, x in np.ndindex(small.shape):
        for dy, dx in NEIGHBOURS:
            v, u = y + dy * distance, x + dx * distance
            inside = 0 <= v < height and 0 <= u < width
            void = small[n, y, x] == ignore or not inside or small[n, v, u] == ignore
            if exclude_void and void:
                continue
            for c in range(logits.shape[1]):
                mine = small[n, y, x] == c
                theirs = bool(inside and small[n, v, u] == c)
                p_i = 1e-4 if small[n, y, x] == ignore else max(probs[n, c, y, x], 1e-4)
                p_j = max(probs[n, c, v, u], 1e-4) if inside and small[n, v, u] != ignore else 1e-4
                q_i, q_j = 1 - p_i + 1e-4, 1 - p_j + 1e-4
                divergence = p_j * math.log(p_j / p_i) + q_j * math.log(q_j / q_i)
                edge_weight, same_weight = (1, 1) if weights is None else (w[small[n, y, x]] for w in weights)
                if mine != theirs:
                    edges.append(edge_weight * max(0.0, 3 - divergence))
                else:
                    others.append(same_weight * divergence)
    return sum(edges) / max(len(edges), 1) + sum(others) / max(len(others), 1)
