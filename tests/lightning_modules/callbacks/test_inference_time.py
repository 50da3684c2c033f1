"""With a clock that each pass moves on: no real time is measured."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from beyondpixel.lightning_modules import SegmentationModule
from beyondpixel.lightning_modules.callbacks import InferenceTime

Make = Callable[..., Any]


class Timed(SegmentationModule):
    """A pass takes 100 s where the size of the image is new or the module is young, and otherwise more each time."""

    def configure_network(self) -> nn.Module:
        return nn.Conv2d(3, self.num_classes, 1)

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.now = 0.0
        self.single: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 1:
            cold = len(self.single) < 3 or self.single[-1] != images.shape
            self.now += 100.0 if cold else len(self.single)
            self.single.append(tuple(images.shape))
        assert not self.training
        assert not torch.is_grad_enabled()
        return super().forward(images)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Timed:
    module = Timed(3)
    monkeypatch.setattr("beyondpixel.lightning_modules.callbacks.inference_time.time.perf_counter", lambda: module.now)
    return module


def test_median_of_the_first_images_one_by_one(data: Any, module: Timed, trainer: Make) -> None:
    data.sizes["test"], data.batch_size = 8, 2
    (logged,) = trainer(callbacks=[InferenceTime(num_images=5)]).test(module, data, verbose=False)
    # three to warm up, then 5 that take 3, 4, 5, 6 and 7 seconds
    assert module.single == [(1, 3, 33, 47)] * 8
    assert logged["test/seconds_per_image"] == 5


def test_a_new_size_warms_up(data: Any, module: Timed, trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (5, 6), (7, 8)
    samples = [
        {"image": torch.zeros(3, *size), "mask": torch.zeros(*size, dtype=torch.long), "id": str(index)}
        for index, size in enumerate([small, small, large, large, small, small])
    ]
    monkeypatch.setattr(data, "samples", lambda split: samples)
    (logged,) = trainer(callbacks=[InferenceTime(num_images=20)]).test(module, data, verbose=False)
    assert [size[2:] for size in module.single] == [small] * 5 + [large] * 3 + [small] * 3
    # of 3, 4, 6, 7, 9 and 10 seconds; the passes between them warmed up
    assert logged["test/seconds_per_image"] == 6.5


def test_number_must_be_positive() -> None:
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        InferenceTime(num_images=0)
