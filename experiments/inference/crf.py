"""Fully connected CRF as post-processing (Krähenbühl and Koltun, NeurIPS 2011), with the RMI paper's settings.

This file imports no torch, so that the processes that refine images start quickly.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_PROBABILITY = 1e-5


@dataclass(frozen=True)
class DenseCRF:
    """Mean-field inference in a CRF that joins every pixel to every other.

    The unary energy is −log of the network's probabilities. Two pixels with different labels cost
    w₁·exp(−|p_i−p_j|²/2θ_γ²) + w₂·exp(−|p_i−p_j|²/2θ_α² − |I_i−I_j|²/2θ_β²), with positions p and 8-bit RGB colours I.
    Filters are the package's permutohedral lattice, hence approximate. The defaults are what the RMI paper's authors
    compare with (steps 1, 5 and 10, on models trained with cross entropy).

    Args:
        steps: mean-field steps, at least 1.
        smooth_std: θ_γ in pixels.
        smooth_weight: w₁.
        color_position_std: θ_α in pixels.
        color_std: θ_β in 8-bit colour levels.
        color_weight: w₂.

    Raises:
        ValueError: if steps is below 1.
        ModuleNotFoundError: when called without the package of the extra `crf`.

    Example:
        >>> image = np.zeros((4, 6, 3), dtype=np.uint8)
        >>> probs = np.full((2, 4, 6), 0.5, dtype=np.float32)
        >>> DenseCRF(steps=1)(image, probs).shape
        (2, 4, 6)
    """

    steps: int = 5
    smooth_std: float = 3.0
    smooth_weight: float = 3.0
    color_position_std: float = 30.0
    color_std: float = 13.0
    color_weight: float = 10.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps of the CRF must be 1 or more, got {self.steps}; without a CRF leave it out")

    def __call__(self, image: NDArray[np.uint8], probs: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Refine one image's probabilities.

        Args:
            image: uint8 (H, W, 3), RGB as it was read, not normalised.
            probs: (C, H, W), softmax probabilities; clipped at 1e-5 from below.

        Returns:
            float32 (C, H, W), summing to 1 over classes.

        Raises:
            ValueError: if shapes or dtype do not fit.
        """
        classes, height, width = probs.shape
        if image.dtype != np.uint8 or image.shape != (height, width, 3):
            raise ValueError(
                f"image must be uint8 ({height}, {width}, 3), as probs are {probs.shape}, "
                f"got {image.dtype} {image.shape}"
            )
        lattice = import_package()
        field = lattice.DenseCRF2D(width, height, classes)
        unary = -np.log(np.clip(probs, LEAST_PROBABILITY, 1.0)).reshape(classes, -1)
        field.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
        kernel = {"kernel": lattice.DIAG_KERNEL, "normalization": lattice.NORMALIZE_SYMMETRIC}
        field.addPairwiseGaussian(sxy=self.smooth_std, compat=self.smooth_weight, **kernel)
        field.addPairwiseBilateral(
            sxy=self.color_position_std,
            srgb=self.color_std,
            rgbim=np.require(image, requirements=["C", "W"]),  # the package insists on a writable array
            compat=self.color_weight,
            **kernel,
        )
        return np.asarray(field.inference(self.steps), dtype=np.float32).reshape(classes, height, width)


@functools.cache
def import_package() -> Any:
    """The compiled CRF.

    Raises:
        ModuleNotFoundError: with the command that installs it.
    """
    try:
        return importlib.import_module("pydensecrf.densecrf")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the CRF needs the package pydensecrf2, which is not installed: pip install 'beyondpixel[crf]'"
        ) from error
