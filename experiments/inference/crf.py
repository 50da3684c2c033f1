"""Fully connected CRF as post-processing of a network, or of another inferer."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from beyondpixel.datamodules.loading import available_cores
from beyondpixel.experiments.inference.mean_field import timed_mean_field
from beyondpixel.experiments.inference.probabilities import to_logits, to_probs
from beyondpixel.lightning_modules.visualization import denormalize


class DenseCRF:
    """Probabilities refined by `mean_field`, image by image.

    Normalization is undone, because the CRF compares 8-bit colors. The images of a batch are refined in parallel, in
    as many processes as this one has cores; a single image is refined in this process.

    Args:
        steps: mean-field steps, at least 1.
        mean, std: normalization of the images, per channel of images in 0..1.

    Raises:
        ValueError: if steps is below 1.

    Example:
        >>> crf = DenseCRF(1, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
        >>> crf(torch.zeros(1, 3, 4, 6), lambda images: images[:, :2]).shape
        torch.Size([1, 2, 4, 6])
    """

    def __init__(self, steps: int, mean: Sequence[float], std: Sequence[float]) -> None:
        if steps < 1:
            raise ValueError(f"steps of the CRF must be 1 or more, got {steps}; without a CRF leave it out")
        self.steps = steps
        self.mean, self.std = mean, std
        self.cpu_seconds: list[float] = []  # of each image, on one core

    def __call__(self, images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Log-probabilities (N, C, H, W) of normalized images (N, 3, H, W)."""
        probs = to_probs(network(images))
        colors = [denormalize(image, self.mean, self.std) for image in images.float().cpu().numpy()]
        arguments = (colors, list(probs.cpu().numpy()), [self.steps] * len(images))
        results = list((map if len(images) == 1 else self._processes.map)(timed_mean_field, *arguments))
        self.cpu_seconds += [seconds for _, seconds in results]
        refined = np.stack([one for one, _ in results])
        return to_logits(torch.from_numpy(refined).to(probs.device))

    @cached_property
    def _processes(self) -> ProcessPoolExecutor:
        # forked copies of a process that holds threads or a GPU may hang
        return ProcessPoolExecutor(available_cores(), mp_context=multiprocessing.get_context("spawn"))
