"""The subbands and the log determinant of CWMI in float64 loops, from their equations."""

import cmath
import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]


def polar(row: int, column: int, height: int, width: int) -> tuple[float, float]:
    vertical = -math.pi + 2 * math.pi / height * (row + 1)
    horizontal = -math.pi + 2 * math.pi / width * (column + 1)
    return math.hypot(vertical, horizontal), math.atan2(horizontal, vertical)


def low(radius: float, start: float) -> float:
    """1 up to start, 0 from twice start."""
    if radius <= start:
        return 1.0
    return math.cos(math.pi / 2 * math.log2(radius / start)) if radius < 2 * start else 0.0


def high(radius: float) -> float:
    """0 up to π/4, 1 from π/2."""
    if radius >= math.pi / 2:
        return 1.0
    return math.cos(math.pi / 2 * math.log2(2 * radius / math.pi)) if radius > math.pi / 4 else 0.0


def oriented(angle: float, number: int, orientations: int, *, one_sided: bool) -> float:
    power = orientations - 1
    alpha = 2**power * math.factorial(power) / math.sqrt(orientations * math.factorial(2 * power))
    cosine = math.cos(angle - math.pi * number / orientations)
    if one_sided:
        return 2 * alpha * max(cosine, 0.0) ** power
    return alpha * abs(cosine) ** power


def transform(spectrum_side: int, sign: int) -> ComplexArray:
    """Row k is the wave of the frequency k - side/2."""
    waves = [
        [cmath.exp(sign * 2j * math.pi * (k - spectrum_side // 2) * x / spectrum_side) for x in range(spectrum_side)]
        for k in range(spectrum_side)
    ]
    return np.array(waves)


def loop_pyramid(image: Array, levels: int, orientations: int, *, one_sided: bool) -> list[ComplexArray]:
    """(H, W), sides multiples of 2^levels → (K, h, w) of each level; the real pyramid's are the real parts."""
    height, width = image.shape
    spectrum = transform(height, -1) @ image @ transform(width, -1).T
    for row in range(height):
        for column in range(width):
            spectrum[row, column] *= low(polar(row, column, height, width)[0], math.pi / 2)
    result = []
    for _ in range(levels):
        height, width = spectrum.shape
        bands = np.zeros((orientations, height, width), dtype=complex)
        rest = spectrum.copy()
        for row in range(height):
            for column in range(width):
                radius, angle = polar(row, column, height, width)
                for number in range(orientations):
                    weight = high(radius) * oriented(angle, number, orientations, one_sided=one_sided)
                    bands[number, row, column] = weight * spectrum[row, column]
                rest[row, column] *= low(radius, math.pi / 4)
        back = transform(height, 1).T, transform(width, 1)
        subbands = np.stack([back[0] @ band @ back[1] / (height * width) for band in bands])
        result.append(subbands if one_sided else subbands.real)
        spectrum = rest[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    return result


def vectors(subbands: ComplexArray, *, one_sided: bool) -> list[Array]:
    """One vector a position; of complex subbands two, [re, im] and [-im, re]."""
    _, height, width = subbands.shape
    result = []
    for row in range(height):
        for column in range(width):
            z = subbands[:, row, column]
            if one_sided:
                result.append(np.concatenate([z.real, z.imag]))
                result.append(np.concatenate([-z.imag, z.real]))
            else:
                result.append(z.real)
    mean = sum(result) / len(result)
    return [vector - mean for vector in result]


def loop_log_det(
    labels: Array, probs: Array, *, levels: int, orientations: int, one_sided: bool, ridge: float = 5e-4
) -> list[float]:
    """log det M of each level, for one image and class, (H, W) each."""
    result = []
    pyramids = [loop_pyramid(image, levels, orientations, one_sided=one_sided) for image in (labels, probs)]
    for y_bands, p_bands in zip(*pyramids, strict=True):
        y = vectors(y_bands, one_sided=one_sided)
        p = vectors(p_bands, one_sided=one_sided)
        cov_y = sum(np.outer(a, a) for a in y)
        cov_p = sum(np.outer(b, b) for b in p) + ridge * np.eye(len(p[0]))
        cross = sum(np.outer(a, b) for a, b in zip(y, p, strict=True))
        sign, value = np.linalg.slogdet(cov_y - cross @ np.linalg.inv(cov_p) @ cross.T)
        assert sign == 1
        result.append(value / 2 if one_sided else value)
    return result
