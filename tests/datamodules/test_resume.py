"""The batches of a run do not depend on workers, processes or interruptions."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from beyondpixel.datamodules import ShapesDataModule
from beyondpixel.datamodules.loading import AugmentedDataset
from beyondpixel.datamodules.sampling import EvaluationSampler, SampleKey, TrainingSampler

pytestmark = pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning")


def shapes(**arguments: Any) -> ShapesDataModule:
    arguments = {"num_train": 13, "num_val": 3, "image_size": (12, 16), "batch_size": 2, "num_workers": 0} | arguments
    return ShapesDataModule(seed=5, **arguments)


def digest(batch: dict[str, Any]) -> str:
    data = batch["image"].contiguous().numpy().tobytes() + batch["mask"].contiguous().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()


class Recorder(pl.LightningModule):
    """Records what it sees in training: epoch, ids, and the very pixels."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        super().__init__()
        self.seen: list[tuple[int, tuple[str, ...], str]] = []
        self.weight = nn.Parameter(torch.zeros(1))
        self.interrupt_at = interrupt_at

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.interrupt_at == self.global_step:
            raise KeyboardInterrupt
        self.seen.append((self.current_epoch, tuple(batch["id"]), digest(batch)))
        return (self.weight * batch["image"].mean()).sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("val/sum", batch["image"].sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path, *, epochs: int = 3, model: Recorder | None = None, resume: str | None = None, **arguments: Any
) -> Recorder:
    model = model or Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(arguments.get("callbacks")),
        callbacks=arguments.pop("callbacks", None),
        **arguments.pop("trainer", {}),
    )
    trainer.fit(model, shapes(**arguments), ckpt_path=resume)
    return model


def test_batches_do_not_depend_on_workers() -> None:
    # without a Trainer, two epochs
    def run(workers: int) -> list[tuple[tuple[str, ...], str]]:
        loader = shapes(num_workers=workers).train_dataloader()
        return [(tuple(batch["id"]), digest(batch)) for _ in range(2) for batch in loader]

    expected = run(0)
    assert len(expected) == 12
    assert run(2) == expected
    assert run(4) == expected


def test_epochs_differ_in_order_and_in_augmentation() -> None:
    # enlarged, since two epochs may well shrink a sample by the same factor and crop nothing
    loader = shapes(batch_size=1, image_size=(48, 64), scales=(1.2, 2.0)).train_dataloader()
    first, second = ({batch["id"][0]: digest(batch) for batch in loader} for _ in range(2))
    assert list(first) != list(second)
    assert set(first) == set(second)
    assert not set(first.values()) & set(second.values())


def test_a_step_takes_the_same_samples_for_any_number_of_processes() -> None:
    def steps(world_size: int) -> list[list[int]]:
        size = 6 // world_size
        options = {"batch_size": size, "world_size": world_size, "seed": 3}
        orders = [[key.index for key in TrainingSampler(range(20), rank=rank, **options)] for rank in range(world_size)]
        return [sorted(index for order in orders for index in order[at : at + size]) for at in range(0, 3 * size, size)]

    assert len({index for step in steps(1) for index in step}) == 18
    assert steps(1) == steps(2) == steps(3)


def test_a_sample_that_fills_up_an_evaluation_has_no_labels() -> None:
    keys = list(EvaluationSampler(range(3), rank=1, world_size=2))
    assert keys == [SampleKey(1), SampleKey(0, void=True)]
    dataset = AugmentedDataset(shapes().dataset("val"))
    assert [bool((dataset[key].mask != 255).any()) for key in keys] == [True, False]


def test_another_seed_has_another_order_and_other_augmentation() -> None:
    def epoch(seed: int) -> dict[str, str]:
        size: dict[str, Any] = {"num_train": 13, "image_size": (48, 64), "batch_size": 1, "num_workers": 0}
        loader = ShapesDataModule(seed=seed, scales=(1.2, 2.0), **size).train_dataloader()
        return {batch["id"][0]: digest(batch) for batch in loader}

    first, second = epoch(5), epoch(6)
    assert list(first) != list(second)
    assert set(first) == set(second)
    assert not set(first.values()) & set(second.values())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "checkpoint",
    [
        {"every_n_train_steps": 4},
        {"every_n_train_steps": 8},
        {"every_n_train_steps": 6},
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    ],
    ids=["mid first epoch", "mid second epoch", "last batch", "epoch end", "after validation"],
)
def test_resumed_run_sees_the_remaining_batches_bit_for_bit(
    tmp_path: Path, checkpoint: dict[str, Any], workers: int
) -> None:
    callback = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **checkpoint)
    whole = fit(tmp_path, callbacks=[callback]).seen
    assert len(whole) == 18
    steps = {int(path.stem.removeprefix("step=")): path for path in tmp_path.glob("step=*.ckpt")}
    step = min(steps)
    resumed = fit(tmp_path, resume=str(steps[step]), num_workers=workers).seen
    assert resumed == whole[step:]


@pytest.mark.parametrize("interval", [2, 0.5])
def test_resume_with_validation_inside_the_epoch(tmp_path: Path, interval: float) -> None:
    trainer = {"val_check_interval": interval}
    callback = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_epochs=1)
    whole = fit(tmp_path, callbacks=[callback], trainer=dict(trainer)).seen
    for path in tmp_path.glob("step=*.ckpt"):
        step = int(path.stem.removeprefix("step="))
        assert fit(tmp_path, resume=str(path), trainer=dict(trainer)).seen == whole[step:], path.name


class SaveOnException(pl.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        trainer.save_checkpoint(self.path)


def test_interrupted_batch_is_done_again(tmp_path: Path) -> None:
    whole = fit(tmp_path).seen
    path = tmp_path / "interrupted.ckpt"
    model = Recorder(interrupt_at=9)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, model=model, callbacks=[SaveOnException(path)])
    assert model.seen == whole[:9]
    assert fit(tmp_path, resume=str(path)).seen == whole[9:]


def test_loader_resumes_without_a_trainer() -> None:
    def items(loader: Any) -> list[str]:
        return [digest(batch) for batch in loader]

    whole = shapes().train_dataloader()
    expected = [*items(whole), *items(whole)]

    interrupted = shapes().train_dataloader()
    items(interrupted)
    for _, _ in zip(range(4), interrupted, strict=False):
        pass
    state = interrupted.state_dict()
    assert state == {"epoch": 1, "batch": 4}
    resumed = shapes().train_dataloader()
    resumed.load_state_dict(state)
    assert items(resumed) == expected[-2:]
    assert resumed.state_dict() == {"epoch": 2, "batch": 0}


def _train_on_two(rank: int, folder: str, port: int) -> None:
    import os

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    os.environ.update(WORLD_SIZE="2", RANK=str(rank))
    torch.set_num_threads(1)
    model = Ranked()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    data = shapes(batch_size=2, num_val=3, eval_batch_size=1)
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    torch.save([model.seen, model.evaluated], Path(folder) / f"rank{rank}.pt")


class Ranked(Recorder):
    """Also records how often each evaluation image had labels. Batch norm makes DDP synchronize in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.evaluated: dict[str, list[str]] = {"val": [], "test": []}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + self.norm(batch["image"]).mean()

    def _evaluate(self, stage: str, batch: dict[str, Any]) -> None:
        self.norm(batch["image"])
        if not self.trainer.sanity_checking and (batch["mask"] != 255).any():
            self.evaluated[stage] += batch["id"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate("test", batch)


@pytest.mark.slow
def test_two_processes_see_together_what_one_sees(tmp_path: Path, unused_tcp_port: int) -> None:
    mp.start_processes(_train_on_two, (str(tmp_path), unused_tcp_port), nprocs=2, start_method="spawn")
    (seen0, evaluated0), (seen1, evaluated1) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    union = [(first[0], set(first[1] + second[1])) for first, second in zip(seen0, seen1, strict=True)]
    single = fit(tmp_path, epochs=2).seen
    assert union == [(epoch, set(ids)) for epoch, ids, _ in single]
    # and pixel for pixel: batches of one, whose pictures the single process sees alone as well
    alone = {(epoch, ids[0]): pixels for epoch, ids, pixels in fit(tmp_path, epochs=2, batch_size=1).seen}
    both = [*seen0, *seen1]
    assert len(both) == 24
    assert all(alone.get((epoch, ids[0]), pixels) == pixels for epoch, ids, pixels in both)
    # three validation images on two processes, twice; each counts once
    assert sorted(evaluated0["val"] + evaluated1["val"]) == sorted([f"val_{index:05d}" for index in range(3)] * 2)
    assert len(set(evaluated0["test"] + evaluated1["test"])) == len(evaluated0["test"] + evaluated1["test"]) == 100
