"""Inference time of one image."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from beyondpixel.lightning_modules.base import SegmentationModule


class InferenceTime(Callback):
    """Logs `test/seconds_per_image`: the median time from a normalized image to logits of the image's own size.

    After the test, the first test images are run again, one by one, in the trainer's precision, on the test's device,
    so that nothing else is computed at the same time. The time includes the module's inferer (crops, test-time
    augmentation, a CRF). Warm-up passes are not counted: three at the beginning, and one at each change of the images'
    size, for which memory and algorithms are chosen again. Only the first process measures.

    Args:
        num_images: how many images to time.

    Raises:
        ValueError: if it is below 1.

    Example:
        >>> trainer = Trainer(callbacks=[InferenceTime(num_images=5)], logger=False, accelerator="cpu")
    """

    def __init__(self, num_images: int = 20) -> None:
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        self.num_images = num_images
        self._images: list[Tensor] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._images = []

    def on_test_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        missing = self.num_images - len(self._images)
        if trainer.is_global_zero and missing > 0:
            self._images += batch["image"][:missing].cpu().split(1)  # keep the GPU's memory free for the test

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if not self._images or not isinstance(pl_module, SegmentationModule):
            return
        with trainer.precision_plugin.forward_context():
            seconds = _seconds(pl_module, [image.to(pl_module.device) for image in self._images])
        self._images = []
        pl_module.log("test/seconds_per_image", statistics.median(seconds), rank_zero_only=True)


def _seconds(module: SegmentationModule, images: Sequence[Tensor]) -> list[float]:
    seconds: list[float] = []
    shape = None
    for image in images:
        for _ in range(int(image.shape != shape) if seconds else 3):
            module.infer(image)
        shape = image.shape
        _synchronize(image)
        start = time.perf_counter()
        module.infer(image)
        _synchronize(image)
        seconds.append(time.perf_counter() - start)
    return seconds


def _synchronize(image: Tensor) -> None:
    if image.is_cuda:  # kernels run asynchronously
        torch.cuda.synchronize(image.device)
