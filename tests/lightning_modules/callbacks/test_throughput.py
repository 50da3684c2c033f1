"""With a clock of our own: no real time is measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback, LightningModule, Trainer

from beyondpixel.lightning_modules.callbacks import Throughput

Make = Callable[..., Any]


class Clock(Callback):
    """Training steps take 4, 4, 2, 2, ... seconds; validation takes 1000."""

    def __init__(self) -> None:
        self.now = 0.0
        self.logged: list[float | None] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.now += 4.0 if trainer.global_step < 2 else 2.0

    def on_validation_start(self, *_: Any) -> None:
        self.now += 1000.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        value = trainer.callback_metrics.get("train/images_per_s")
        self.logged.append(None if value is None else value.item())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("beyondpixel.lightning_modules.callbacks.throughput.time.perf_counter", lambda: clock.now)
    return clock


def test_first_steps_and_validation_do_not_count(data: Any, tiny_module: Make, trainer: Make, clock: Clock) -> None:
    data.sizes["train"] = 8  # 4 batches of 2
    trainer(max_epochs=2, callbacks=[Throughput(warmup_steps=2), clock]).fit(tiny_module(), data)
    # a step of 2 images in 2 seconds; the first step after validation has no beginning and is left out
    assert clock.logged == [None, None, *[1.0] * 6]


def test_the_mean_is_over_the_window(data: Any, tiny_module: Make, trainer: Make, clock: Clock) -> None:
    data.sizes["train"] = 12
    trainer(callbacks=[Throughput(warmup_steps=0, window=3), clock]).fit(tiny_module(), data)
    # seconds of steps 2, 3, ...: 4, 2, 2, 2, 2
    expected = [None, 2 / 4, 4 / 6, 6 / 8, 6 / 6, 6 / 6]
    assert clock.logged == [None, *[pytest.approx(value) for value in expected[1:]]]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_peak_memory_on_a_cpu_is_that_of_the_process(data: Any, tiny_module: Make, trainer: Make) -> None:
    def peak() -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1])  # KiB

    before, training = peak(), trainer(callbacks=[Throughput()])
    training.fit(tiny_module(), data)
    logged = training.callback_metrics["train/peak_memory_mb"].item() * 2**10
    # the kernel counts a process's pages in batches, so that both are some pages off
    assert before - 2**12 <= logged <= peak() + 2**12


@pytest.mark.parametrize("arguments", [{"warmup_steps": -1}, {"window": 0}])
def test_bad_numbers(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="warmup_steps must be 0 or more and window 1 or more"):
        Throughput(**arguments)
