"""Eq. 12-16 in NumPy float64, one image, class, region and window at a time: nothing but loops and slices."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def loop_bound(
    probs: Array, one_hot: Array, *, region_size: int, factor: int, pooling: str, covariance: str, ridge: float
) -> Array:
    """I_l (N, C) of probabilities and multi-hot labels (N, C, H, W), void pixels already set to 0 in both."""
    bound = np.empty(probs.shape[:2])
    for image in range(probs.shape[0]):
        for cls in range(probs.shape[1]):
            bound[image, cls] = _bound_of_map(
                probs[image, cls],
                one_hot[image, cls],
                side=region_size,
                factor=factor,
                pooling=pooling,
                covariance=covariance,
                ridge=ridge,
            )
    return bound


def _bound_of_map(
    probs: Array, labels: Array, *, side: int, factor: int, pooling: str, covariance: str, ridge: float
) -> float:
    step = factor if pooling == "stride" else 1
    small_probs, small_labels = _pool(probs, factor, pooling, False), _pool(labels, factor, pooling, True)
    p_vectors, y_vectors = [], []
    height, width = small_probs.shape
    for top in range(0, height - side + 1, step):
        for left in range(0, width - side + 1, step):
            p_vectors.append(small_probs[top : top + side, left : left + side].ravel())
            y_vectors.append(small_labels[top : top + side, left : left + side].ravel())
    y, p = np.array(y_vectors).T, np.array(p_vectors).T
    d, n = y.shape
    sigma_y, sigma_p, cross = np.zeros((d, d)), np.zeros((d, d)), np.zeros((d, d))
    mean_y, mean_p = y.mean(1), p.mean(1)
    for position in range(n):
        dy, dp = y[:, position] - mean_y, p[:, position] - mean_p
        sigma_y += np.outer(dy, dy)
        sigma_p += np.outer(dp, dp)
        cross += np.outer(dy, dp)
    if covariance == "mean":
        sigma_y, sigma_p, cross = sigma_y / n, sigma_p / n, cross / n
    eye = ridge * np.eye(d)
    m = sigma_y - cross @ np.linalg.solve(sigma_p + eye, cross.T) + eye
    eigenvalues = np.linalg.eigvalsh((m + m.T) / 2)
    return float(-np.log(eigenvalues).sum() / (2 * d))  # Eq. 15: the trace of the matrix logarithm


def _pool(values: Array, factor: int, pooling: str, labels: bool) -> Array:
    if pooling == "stride" or factor == 1:
        return values
    height, width = values.shape
    if pooling == "interp":
        rows, columns = height // factor, width // factor
        small = np.empty((rows, columns))
        for i in range(rows):
            for j in range(columns):
                if labels:
                    small[i, j] = values[i * height // rows, j * width // columns]
                else:
                    y = i * (height - 1) / max(rows - 1, 1)
                    x = j * (width - 1) / max(columns - 1, 1)
                    small[i, j] = _bilinear(values, y, x)
        return small
    padding = factor // 2
    fill = 0.0 if pooling == "avg" else -np.inf
    padded = np.pad(values, padding, constant_values=fill)
    rows, columns = padded.shape[0] // factor, padded.shape[1] // factor
    small = np.empty((rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = padded[i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
            small[i, j] = window.mean() if pooling == "avg" else window.max()
    return small


def _bilinear(values: Array, y: float, x: float) -> float:
    top, left = int(y), int(x)
    bottom, right = min(top + 1, values.shape[0] - 1), min(left + 1, values.shape[1] - 1)
    fy, fx = y - top, x - left
    above = values[top, left] * (1 - fx) + values[top, right] * fx
    below = values[bottom, left] * (1 - fx) + values[bottom, right] * fx
    return float(above * (1 - fy) + below * fy)
