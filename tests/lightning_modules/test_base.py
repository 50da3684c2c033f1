"""Through a real Trainer, on images of 33x47 pixels."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from beyondpixel.lightning_modules import SegmentationModule
from beyondpixel.lightning_modules.metrics import EvaluationMetrics
from beyondpixel.lightning_modules.schedules import warmup_poly
from beyondpixel.losses import RMILoss

Make = Callable[..., Any]


def _metrics_of(module: SegmentationModule, loader: Any, *, boundaries: bool = False) -> dict[str, float]:
    metrics = EvaluationMetrics(3, class_names=["red", "green", "blue"], boundaries=boundaries)
    module.eval()
    with torch.no_grad():
        for batch in loader:
            metrics.update(module(batch["image"]).argmax(1), batch["mask"])
    return {name: value.item() for name, value in metrics.compute().items()}


class Recorder(Callback):
    """Metrics of each training step, and the loss's progress."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.progress: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.steps.append({name: value.item() for name, value in trainer.callback_metrics.items()})
        assert isinstance(pl_module.loss, nn.Module)
        self.progress.append(pl_module.loss.progress)  # type: ignore[arg-type]


def test_fit_validate_test_log_the_named_metrics(data: Any, tiny_module: Make, trainer: Make) -> None:
    module = tiny_module(class_names=["red", "green", "blue"], loss="rmi")
    recorder = Recorder()
    run = trainer(callbacks=[recorder])
    run.fit(module, data)
    for step in recorder.steps:
        assert {"train/loss", "train/loss_pixel", "train/loss_rmi"} <= set(step)
        # the terms are unweighted; RMILoss weighs them half and half
        assert step["train/loss"] == pytest.approx(0.5 * step["train/loss_pixel"] + 0.5 * step["train/loss_rmi"], 1e-5)
    names = {"mIoU", "pixel_accuracy", "mean_accuracy", "frequency_weighted_IoU", "IoU/red", "IoU/green", "IoU/blue"}
    losses = {"loss", "loss_pixel", "loss_rmi"}
    assert {"train/loss", "val/mIoU"} == set(run.progress_bar_metrics)
    assert {f"val/{name}" for name in names | losses} <= set(run.callback_metrics)

    (validated,) = run.validate(module, data, verbose=False)
    (tested,) = run.test(module, data, verbose=False)
    boundaries = {"boundary_IoU", "boundary_F", *(f"trimap_mIoU/{width}" for width in (1, 2, 4, 8, 16))}
    boundaries |= {f"boundary_{score}/{name}" for score in ("IoU", "F") for name in ("red", "green", "blue")}
    boundaries |= {"IoU_small", "IoU_medium", "IoU_large"}
    assert set(validated) == {f"val/{name}" for name in names | losses}
    assert set(tested) == {f"test/{name}" for name in names | losses | boundaries}
    for stage, logged, loader in (("val", validated, data.val_dataloader()), ("test", tested, data.test_dataloader())):
        for name, value in _metrics_of(module, loader, boundaries=stage == "test").items():
            assert logged[f"{stage}/{name}"] == pytest.approx(value, rel=1e-6, nan_ok=True)


def test_boundaries_are_evaluated_where_asked(data: Any, tiny_module: Make, trainer: Make) -> None:
    module, run = tiny_module(boundary_metrics=["val"]), trainer()
    (validated,) = run.validate(module, data, verbose=False)
    (tested,) = run.test(module, data, verbose=False)
    assert validated["val/boundary_IoU"] == pytest.approx(
        _metrics_of(module, data.val_dataloader(), boundaries=True)["boundary_IoU"], rel=1e-6
    )
    assert "test/boundary_IoU" not in tested


def test_a_mean_without_the_classes_that_the_data_module_names(data: Any, tiny_module: Make, trainer: Make) -> None:
    data.classes_excluded_from_mean = ("green",)
    (logged,) = trainer().validate(tiny_module(class_names=["red", "green", "blue"]), data, verbose=False)
    assert logged["val/mIoU_2"] == pytest.approx((logged["val/IoU/red"] + logged["val/IoU/blue"]) / 2, rel=1e-6)
    (logged,) = trainer().validate(tiny_module(), data, verbose=False)  # a model that knows no names
    assert not [name for name in logged if name.startswith("val/mIoU_")]


def test_another_void_label_gives_the_same(data: Any, tiny_module: Make, trainer: Make) -> None:
    module, other = tiny_module(), tiny_module(ignore_index=7)
    other.load_state_dict(module.state_dict())
    (expected,) = trainer().test(module, data, verbose=False)
    samples = data.samples("test")
    for sample in samples:
        sample["mask"][sample["mask"] == 255] = 7
    (found,) = trainer().test(other, DataLoader(samples, batch_size=2), verbose=False)
    assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_metrics_start_anew_for_each_evaluation(data: Any, tiny_module: Make, trainer: Make) -> None:
    module, run = tiny_module(), trainer()
    run.validate(module, data, verbose=False)
    nn.init.zeros_(module.network.head.weight)
    nn.init.constant_(module.network.head.bias, 0.0)
    with torch.no_grad():
        module.network.head.bias[1] = 1.0
    (logged,) = run.validate(module, data, verbose=False)
    assert logged["val/IoU/0"] == 0.0
    assert logged["val/mean_accuracy"] == pytest.approx(1 / 3)


def test_training_learns(data: Any, tiny_module: Make, trainer: Make) -> None:
    module = tiny_module(lr=0.05)
    trainer(max_epochs=30).fit(module, data)
    assert _metrics_of(module, data.test_dataloader())["mIoU"] > 0.9


def test_the_loss_knows_how_far_training_is(data: Any, tiny_module: Make, trainer: Make) -> None:
    recorder = Recorder()
    trainer(max_epochs=2, callbacks=[recorder]).fit(tiny_module(), data)
    assert recorder.progress == [0.0, 0.25, 0.5, 0.75]


def test_a_compiled_loss_knows_it_too(data: Any, tiny_module: Make, trainer: Make) -> None:
    recorder = Recorder()
    module = tiny_module(loss={"name": "affinity", "stride": 4, "decay": 10})
    module.loss = torch.compile(module.loss, backend="eager")
    trainer(max_epochs=2, callbacks=[recorder]).fit(module, data)
    for progress, step in enumerate(recorder.steps):
        weighted = step["train/loss_pixel"] + 10 ** (-progress / 4) * step["train/loss_affinity"]
        assert step["train/loss"] == pytest.approx(weighted, rel=1e-5)


def test_schedule_runs_per_iteration_and_groups_have_names(
    data: Any, tiny_module: Make, trainer: Make, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path)
    monitor = LearningRateMonitor(logging_interval="step")
    schedule = {"lr": 0.1, "warmup_iters": 2, "warmup_start_lr": 0.02, "lr_power": 2.0, "min_lr": 0.001}
    module = tiny_module(**schedule, head_lr_multiplier=5.0)
    run = trainer(max_epochs=2, logger=logger, callbacks=[monitor])
    rates: list[list[float]] = []
    module.on_train_batch_start = lambda *_: rates.append([g["lr"] for g in run.optimizers[0].param_groups]) or None
    run.fit(module, data)
    expected = [0.06, 0.1, 0.025, 0.001]  # 0.02 + 0.08 / 2, all, 0.1 · (1/2)², the floor
    torch.testing.assert_close(torch.tensor(rates)[:, 0], torch.tensor(expected))
    torch.testing.assert_close(torch.tensor(rates)[:, 2], torch.tensor(expected) * 5)
    assert set(monitor.lrs) == {
        f"lr-SGD/{name}" for name in ("encoder/decay", "encoder/no_decay", "head/decay", "head/no_decay")
    }


def test_resume_continues_exactly(data: Any, tiny_module: Make, trainer: Make, tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    torch.manual_seed(1)
    straight = tiny_module(lr=0.1, warmup_iters=3)
    trainer(max_epochs=4, callbacks=[Stop()]).fit(straight, data)
    resumed = tiny_module(lr=0.1, warmup_iters=3)
    recorder = Recorder()
    trainer(max_epochs=4, callbacks=[recorder]).fit(resumed, data, ckpt_path=tmp_path / "half.ckpt")
    assert recorder.progress == [0.5, 0.625, 0.75, 0.875]
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bf16_mixed_precision(data: Any, tiny_module: Make, trainer: Make) -> None:
    module = tiny_module(loss="rmi")
    before = [parameter.clone() for parameter in module.parameters()]
    run = trainer(precision="bf16-mixed", fast_dev_run=1)
    run.fit(module, data)
    assert all(math.isfinite(value) for value in run.callback_metrics.values())
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    changed = [not torch.equal(new, old) for new, old in zip(module.parameters(), before, strict=True)]
    assert all(changed)


def test_predict_gives_ids_and_classes(data: Any, tiny_module: Make, trainer: Make) -> None:
    module = tiny_module()
    batches = trainer().predict(module, data)
    assert [name for batch in batches for name in batch["id"]] == ["test0", "test1", "test2"]
    preds = torch.cat([batch["preds"] for batch in batches])
    assert preds.dtype == torch.uint8
    with torch.no_grad():
        images = torch.stack([sample["image"] for sample in data.samples("test")])
        torch.testing.assert_close(preds.long(), module.eval()(images).argmax(1))


def test_predict_needs_no_mask(tiny_module: Make) -> None:
    prediction = tiny_module().eval().predict_step({"image": torch.zeros(1, 3, 5, 6), "id": ["a"]}, 0)
    assert prediction["preds"].shape == (1, 5, 6)


@pytest.mark.parametrize(("classes", "dtype"), [(256, torch.uint8), (257, torch.int64)])
def test_predicted_classes_fit_their_type(tiny_module: Make, classes: int, dtype: torch.dtype) -> None:
    module = tiny_module(num_classes=classes).eval()
    with torch.no_grad():
        module.network.head.bias[classes - 1] = 100.0
    preds = module.predict_step({"image": torch.zeros(1, 3, 5, 6), "id": ["a"]}, 0)["preds"]
    assert preds.dtype == dtype
    assert (preds == classes - 1).all()


@pytest.mark.parametrize("stage", ["training", "validation", "test"])
def test_a_missing_mask_is_named(tiny_module: Make, stage: str) -> None:
    module = tiny_module()
    module._max_iters = 1
    short = {"training": "train", "validation": "val", "test": "test"}[stage]
    with pytest.raises(ValueError, match=rf"a {short} batch needs 'mask', but it holds \['id', 'image'\] only"):
        getattr(module, f"{stage}_step")({"image": torch.zeros(1, 3, 5, 6), "id": ["a"]}, 0)


def test_training_without_an_end_is_refused(data: Any, tiny_module: Make, trainer: Make) -> None:
    with pytest.raises(ValueError, match=r"set trainer.max_steps or max_epochs"):
        trainer(max_epochs=-1).fit(tiny_module(), data)


class TestLoss:
    def test_by_name_and_arguments(self, tiny_module: Make) -> None:
        module = tiny_module(loss={"name": "rmi", "region_size": 2}, ignore_index=7)
        logits, target = torch.randn(1, 3, 12, 12), torch.randint(0, 3, (1, 12, 12))
        target[:, 0] = 7
        expected = RMILoss(3, region_size=2, ignore_index=7)(logits, target)
        torch.testing.assert_close(module.loss(logits, target), expected, rtol=0, atol=0)
        assert expected != RMILoss(3, region_size=3, ignore_index=7)(logits, target)

    def test_unknown_name(self, tiny_module: Make) -> None:
        with pytest.raises(ValueError, match=r"'ce', 'bce', 'rmi'.*'dice'.*did you mean 'dice'"):
            tiny_module(loss="dicee")

    @pytest.mark.parametrize("loss", [3, None, []])
    def test_neither_name_nor_module(self, tiny_module: Make, loss: Any) -> None:
        with pytest.raises(ValueError, match="loss must be a name, a dict with 'name' and arguments, a list of these"):
            tiny_module(loss=loss)

    def test_arguments_without_a_name(self, tiny_module: Make) -> None:
        with pytest.raises(ValueError, match=r"expected a name, or a mapping with 'name', got \{'region_size': 2\}"):
            tiny_module(loss={"region_size": 2})

    def test_a_sum_of_losses(self, tiny_module: Make) -> None:
        logits, target = torch.randn(1, 3, 12, 12), torch.randint(0, 3, (1, 12, 12))
        both = tiny_module(loss=[{"name": "ce"}, {"name": "rmi", "weight": 0.5}]).loss(logits, target)
        ce, rmi = (tiny_module(loss=name).loss(logits, target) for name in ("ce", "rmi"))
        torch.testing.assert_close(both, ce + 0.5 * rmi)

    def test_a_module_of_ones_own(self, data: Any, tiny_module: Make, trainer: Make, tmp_path: Path) -> None:
        run = trainer(fast_dev_run=False, max_steps=1)
        run.fit(tiny_module(loss=nn.CrossEntropyLoss(ignore_index=255)), data)
        assert "train/loss" in run.callback_metrics
        assert "train/loss_pixel" not in run.callback_metrics
        run.save_checkpoint(tmp_path / "last.ckpt")
        cls = type(tiny_module())
        with pytest.raises(ValueError, match=r"pass the module to load_from_checkpoint\(path, loss=...\)"):
            cls.load_from_checkpoint(tmp_path / "last.ckpt")
        assert isinstance(cls.load_from_checkpoint(tmp_path / "last.ckpt", loss=nn.CrossEntropyLoss()).loss, nn.Module)


class TestInferer:
    def test_evaluation_and_prediction_use_it(self, data: Any, tiny_module: Make, trainer: Make) -> None:
        """An inferer that flips classes: metrics, predictions and no loss."""
        module, sizes = tiny_module(), []

        def reversed_classes(images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
            sizes.append(tuple(images.shape))
            return network(images).flip(1)

        (plain,) = trainer().test(module, data, verbose=False)
        predicted = torch.cat([batch["preds"] for batch in trainer().predict(module, data)])
        module.inferer = reversed_classes
        (logged,) = trainer().test(module, data, verbose=False)
        assert set(plain) - set(logged) == {name for name in plain if name.startswith("test/loss")} != set()
        metrics = EvaluationMetrics(3)
        for batch, preds in zip(data.test_dataloader(), predicted.split(2), strict=True):
            metrics.update(2 - preds.long(), batch["mask"])
        assert logged["test/mIoU"] == pytest.approx(metrics.compute()["mIoU"].item(), rel=1e-6)
        again = torch.cat([batch["preds"] for batch in trainer().predict(module, data)])
        torch.testing.assert_close(again, 2 - predicted)
        assert sizes == [(2, 3, 33, 47), (1, 3, 33, 47)] * 2

    def test_training_and_checkpoints_do_not_know_it(
        self, data: Any, tiny_module: Make, trainer: Make, tmp_path: Path
    ) -> None:
        def refuse(images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
            raise AssertionError

        module = tiny_module()
        before = set(module.state_dict())
        module.inferer = refuse
        run = trainer(limit_val_batches=0)
        run.fit(module, data)
        assert "train/loss" in run.callback_metrics
        assert set(module.state_dict()) == before
        assert "inferer" not in module.hparams
        run.save_checkpoint(tmp_path / "last.ckpt")
        assert type(module).load_from_checkpoint(tmp_path / "last.ckpt").inferer is None


class TestOptimizer:
    def test_groups_of_the_default(self, data: Any, tiny_module: Make, trainer: Make) -> None:
        run = trainer(max_steps=1)
        run.fit(tiny_module(lr=0.1, weight_decay=0.01, momentum=0.8, head_lr_multiplier=5.0), data)
        groups = {group["name"]: group for group in run.optimizers[0].param_groups}
        assert {name: group["weight_decay"] for name, group in groups.items()} == {
            "encoder/decay": 0.01,
            "encoder/no_decay": 0.0,
            "head/decay": 0.01,
            "head/no_decay": 0.0,
        }
        ratios = {name: group["initial_lr"] for name, group in groups.items()}
        assert ratios == {"encoder/decay": 0.1, "encoder/no_decay": 0.1, "head/decay": 0.5, "head/no_decay": 0.5}
        assert {group["momentum"] for group in groups.values()} == {0.8}

    def test_norm_and_bias_decay_where_asked(self, data: Any, tiny_module: Make, trainer: Make) -> None:
        module, run = tiny_module(decay_norm_and_bias=True), trainer(max_steps=1)
        run.fit(module, data)
        defaults = [
            {name: group[name] for name in ("name", "initial_lr", "momentum", "weight_decay")}
            for group in run.optimizers[0].param_groups
        ]
        assert defaults == [
            {"name": "encoder/decay", "initial_lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
            {"name": "head/decay", "initial_lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
        ]
        assert sum(len(group["params"]) for group in run.optimizers[0].param_groups) == len(list(module.parameters()))

    def test_another_optimizer_keeps_the_rules_of_the_groups(
        self, data: Any, tiny_module: Make, trainer: Make, tmp_path: Path
    ) -> None:
        module = tiny_module(optimizer=partial(torch.optim.AdamW, lr=0.002, weight_decay=0.3), head_lr_multiplier=4.0)
        run = trainer(max_steps=2)
        rates: list[float] = []
        module.on_train_batch_start = lambda *_: rates.append(run.optimizers[0].param_groups[0]["lr"]) or None
        run.fit(module, data)
        assert type(run.optimizers[0]) is torch.optim.AdamW
        groups = {
            group["name"]: (group["initial_lr"], group["weight_decay"]) for group in run.optimizers[0].param_groups
        }
        assert groups == {
            "encoder/decay": (0.002, 0.3),
            "encoder/no_decay": (0.002, 0.0),
            "head/decay": (0.008, 0.3),
            "head/no_decay": (0.008, 0.0),
        }
        assert rates == [pytest.approx(warmup_poly(t, lr=0.002, max_iters=2)) for t in (1, 2)]
        run.save_checkpoint(tmp_path / "last.ckpt")
        saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
        assert not {"optimizer", "lr_scheduler"} & set(saved)
        assert type(module).load_from_checkpoint(tmp_path / "last.ckpt").hparams == module.hparams

    def test_another_schedule_steps_once_an_epoch(self, data: Any, tiny_module: Make, trainer: Make) -> None:
        module = tiny_module(lr=0.1, lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5))
        run = trainer(max_epochs=3)
        rates: list[float] = []
        module.on_train_batch_start = lambda *_: rates.append(run.optimizers[0].param_groups[0]["lr"]) or None
        run.fit(module, data)
        assert rates == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]

    def test_plateau_monitors_miou(self, data: Any, tiny_module: Make, trainer: Make) -> None:
        plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode="max", patience=0, factor=0.1, threshold=9.0)
        run = trainer(max_epochs=3)
        run.fit(tiny_module(lr=0.1, lr_scheduler=plateau), data)
        assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001)
        falling = torch.optim.lr_scheduler.ReduceLROnPlateau
        with pytest.raises(ValueError, match="monitors val/mIoU, which should increase: set mode='max'"):
            trainer().fit(tiny_module(lr_scheduler=falling), data)

    def test_a_plateau_may_monitor_something_else(self, tiny_module: Make) -> None:
        class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
            monitor = "val/loss"

        configured = tiny_module(lr_scheduler=Plateau).configure_optimizers()
        assert configured["lr_scheduler"]["monitor"] == "val/loss"

    def test_a_loss_with_parameters_is_trained(self, data: Any, tiny_module: Make, trainer: Make) -> None:
        loss, run = nn.CrossEntropyLoss(ignore_index=255), trainer(max_steps=1)
        loss.scale = nn.Parameter(torch.ones(1))
        run.fit(tiny_module(loss=loss), data)
        group = run.optimizers[0].param_groups[-1]
        assert (group["name"], group["params"]) == ("loss", [loss.scale])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, r"num_classes must be 2 or more \(background counts as a class\), got 1"),
        ({"class_names": ["a", "b"]}, "class_names must hold num_classes=3 names, got 2"),
        ({"boundary_metrics": ["train"]}, r"boundary_metrics must list 'val', 'test', both or none, got \['train'\]"),
        ({"lr": -1.0}, "lr must be a number of at least 0, got -1.0"),
        ({"lr": math.inf}, "lr must be a number of at least 0, got inf"),
        ({"weight_decay": float("nan")}, "weight_decay must be a number of at least 0, got nan"),
        ({"boundary_metrics": "test"}, "boundary_metrics must list 'val', 'test', both or none, got 'test'"),
        ({"boundary_metrics": ""}, "boundary_metrics must list 'val', 'test', both or none, got ''"),
    ],
)
def test_bad_arguments(tiny_module: Make, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_module(**arguments)


def test_a_subclass_must_say_what_the_network_is() -> None:
    with pytest.raises(NotImplementedError, match=r"SegmentationModule must define configure_network"):
        SegmentationModule(3)


def test_a_checkpoint_monitors_miou(data: Any, tiny_module: Make, trainer: Make, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "best", monitor="val/mIoU", mode="max", filename="best")
    trainer(max_epochs=2, callbacks=[checkpoint], enable_checkpointing=True).fit(tiny_module(), data)
    assert (tmp_path / "best" / "best.ckpt").is_file()


class WithGlobalPooling(SegmentationModule):
    def configure_network(self) -> nn.Module:
        class Pooled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.BatchNorm2d(3)

            def forward(self, images: Tensor) -> Tensor:
                return images + self.norm(images.mean((2, 3), keepdim=True))

        return Pooled()


def test_a_batch_of_one_names_batch_size(data: Any, trainer: Make) -> None:
    data.batch_size = 1
    with pytest.raises(ValueError, match=r"this batch of 1 image\(s\).*use batch_size of 2 or more and drop_last=True"):
        trainer().fit(WithGlobalPooling(3), data)


def test_images_without_labels_do_not_count_in_the_loss(data: Any, tiny_module: Make, trainer: Make) -> None:
    """Such are what evens out the processes of a distributed evaluation."""
    data.sizes["val"] = 3
    two, one = data.val_dataloader()
    one["mask"][:, :20] = 255  # all labeled images count alike, whatever part of them is labeled
    void = {**two, "mask": torch.full_like(two["mask"], 255)}
    own = nn.CrossEntropyLoss(ignore_index=255)  # NaN without a label
    for loss in ("ce", own):
        module = tiny_module(loss=loss)
        with torch.no_grad():
            expected = sum(len(b["id"]) * own(module.eval()(b["image"]), b["mask"]).item() for b in (two, one)) / 3
        (found,) = trainer().validate(module, DataLoader([two, one, void], batch_size=None), verbose=False)
        assert found["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_two_processes_log_the_metrics_of_the_whole_set(
    data: Any, tiny_module: Make, trainer: Make, tmp_path: Path
) -> None:
    """DDP with gloo: two images on one process, one and a void one on the other; both log what one process would."""

    class Save(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            values = {name: float(value) for name, value in trainer.callback_metrics.items()}
            torch.save(values, tmp_path / f"{trainer.global_rank}.pt")

    data.sizes["val"] = 4
    samples = data.samples("val")
    samples[3]["mask"].fill_(255)
    loader = DataLoader(samples, batch_size=2)
    module = tiny_module()
    (alone,) = trainer().validate(module, loader, verbose=False)
    run = trainer(devices=2, strategy="ddp_fork", callbacks=[Save()])
    run.validate(module, loader, verbose=False)
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert "val/loss" in together
        assert together == pytest.approx(alone, rel=1e-6)
