"""MCIBIModule through Trainer: what it minimises, and when its memory changes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from beyondpixel.lightning_modules import MCIBIModule
from beyondpixel.lightning_modules.networks import FeatureMemory

Make = Callable[..., Any]
CONTEXTS = ("none", "ppm", "aspp", "ocr", "upernet", "upernet_aspp")
SMALL: dict[str, Any] = {"encoder": "resnet18", "output_stride": 16, "channels": 12, "attention_channels": 6}


def make(**arguments: Any) -> Any:
    return MCIBIModule(3, **{**SMALL, "context": "none", **arguments})


class Recorder(Callback):
    """Metrics and memory after each training batch."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.memories: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.steps.append({name: value.item() for name, value in trainer.callback_metrics.items()})
        memory: Any = pl_module.network.memory  # type: ignore[union-attr]
        if memory is not None:
            self.memories.append(memory.memory.clone())


@pytest.mark.parametrize("memory", [None, "features", "statistics"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_every_context_with_and_without_memory(data: Any, trainer: Make, context: str, memory: str | None) -> None:
    module = make(context=context, memory=memory)
    with_memory = [
        name
        for name, _ in module.network.named_children()
        if name in ("memory", "class_head", "dataset_context", "context_head")
    ]
    assert bool(with_memory) == (memory is not None)
    without_gradient: list[list[str]] = []
    module.on_after_backward = lambda: without_gradient.append(
        [name for name, parameter in module.named_parameters() if parameter.grad is None]
    )
    run = trainer(max_steps=1)
    run.fit(module, data)
    assert without_gradient == [[]]  # or DDP would complain
    run.test(module, data, verbose=False)
    assert "test/IoU/2" in run.callback_metrics
    with torch.no_grad():
        assert module.eval()(torch.randn(1, 3, 50, 35)).shape == (1, 3, 50, 35)


def test_losses_and_what_is_logged(data: Any, trainer: Make) -> None:
    weights = {"context_weight": 0.3, "auxiliary_weight": 0.2, "consistency_weight": 0.5}
    module = make(loss={"name": "rmi", "region_size": 2}, consistency_from_epoch=1, **weights)
    recorder = Recorder()
    run = trainer(max_epochs=2, callbacks=[recorder])
    run.fit(module, data)
    for index, step in enumerate(recorder.steps):
        total = 0.5 * step["train/loss_pixel"] + 0.5 * step["train/loss_rmi"]
        total += 0.3 * step["train/loss_context"] + 0.2 * step["train/loss_auxiliary"]
        assert ("train/loss_consistency" in step) == (index >= 2)
        total += 0.5 * step.get("train/loss_consistency", 0.0)
        assert step["train/loss"] == pytest.approx(total, rel=1e-5)
        assert step["train/memory_seen_classes"] == 3
    (tested,) = run.test(module, data, verbose=False)
    # evaluated is the prediction's loss, so that runs with and without memory can be compared
    assert {name for name in tested if "loss" in name} == {"test/loss", "test/loss_pixel", "test/loss_rmi"}
    assert not [name for name in tested if "memory" in name]


def test_an_auxiliary_head_without_weight_is_not_built() -> None:
    assert "auxiliary_head" in dict(make().network.named_children())
    assert "auxiliary_head" not in dict(make(auxiliary_weight=0.0).network.named_children())


def test_heads_are_supervised_by_cross_entropy_at_full_size(data: Any, trainer: Make) -> None:
    module = make(memory="statistics", context="aspp", loss="bce")
    outputs: list[Any] = []
    original = module.network.outputs
    module.network.outputs = lambda images: outputs.append(original(images)) or outputs[-1]
    recorder = Recorder()
    trainer(max_steps=1, callbacks=[recorder], limit_val_batches=0).fit(module, data)
    (batch,) = [next(iter(data.train_dataloader()))]
    assert set(outputs[0].intermediate) == {"context", "image_context", "auxiliary"}
    for name, logits in outputs[0].intermediate.items():
        expected = F.cross_entropy(logits, batch["mask"], ignore_index=255).item()
        assert recorder.steps[0][f"train/loss_{name}"] == pytest.approx(expected, rel=1e-5)
    step = recorder.steps[0]
    total = step["train/loss_pixel"] + 0.4 * step["train/loss_context"] + step["train/loss_image_context"]
    assert step["train/loss"] == pytest.approx(total + 0.4 * step["train/loss_auxiliary"], rel=1e-5)


class TestMemory:
    def test_forward_reads_it_and_then_it_updates(self, data: Any, trainer: Make) -> None:
        module, recorder = make(update_strategy="mean", memory_momentum_rule="constant"), Recorder()
        mixes: list[Tensor] = []
        features: list[Tensor] = []
        network = module.network
        network.dataset_context.register_forward_pre_hook(lambda _, inputs: mixes.append(inputs[1].detach()))
        network.class_head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
        trainer(callbacks=[recorder], limit_val_batches=0).fit(module, data)
        assert mixes[0].abs().max() == 0  # nothing was seen yet
        assert mixes[1].abs().max() > 0

        # R at every pixel: 33x47 images are padded to 33x49, whose pixels the 3x4 features lie on, 16 apart
        memory = torch.zeros(3, 12, dtype=torch.float64)
        for index, batch in enumerate(data.train_dataloader()):
            fine = F.interpolate(features[index].double(), size=(33, 49), mode="bilinear", align_corners=True)
            fine = fine[..., :33, :47].movedim(1, -1)
            means = torch.stack([fine[batch["mask"] == k].mean(0) for k in range(3)])
            memory = means if index == 0 else 0.1 * memory + 0.9 * means
            # labels are framed half a pixel off, 1/32 of a step between features
            assert (recorder.memories[index][:, 0] - memory).abs().max() < 0.04 * means.abs().max()

    def test_nothing_but_training_changes_it(self, data: Any, trainer: Make) -> None:
        module = make()
        before_training: list[bool] = []
        after_training: list[dict[str, Tensor]] = []

        def state() -> dict[str, Tensor]:
            return {name: value.clone() for name, value in module.network.memory.state_dict().items()}

        class Watch(Callback):
            def on_sanity_check_end(self, *_: Any) -> None:
                before_training.append(bool(state()["seen"].any()))

            def on_train_batch_end(self, *_: Any) -> None:
                after_training.append(state())

        run = trainer(max_epochs=1, num_sanity_val_steps=2, limit_train_batches=1, callbacks=[Watch()])
        run.fit(module, data)
        assert before_training == [False]
        run.validate(module, data, verbose=False)
        run.test(module, data, verbose=False)
        run.predict(module, data)
        module.train()(torch.randn(2, 3, 33, 47))
        assert len(after_training) == 1
        assert after_training[0]["seen"].all()
        for name, value in state().items():
            assert torch.equal(value, after_training[0][name])

    def test_accumulated_batches_are_one_large_batch(self, data: Any, trainer: Make) -> None:
        data.sizes["train"], data.batch_size = 6, 2  # two batches for the first step, the third alone for the second
        module, recorder = make(memory_momentum_rule="constant", memory_momentum=0.7), Recorder()
        features: list[Tensor] = []
        module.network.class_head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
        update, with_graph = module.network.memory.update, []
        module.network.memory.update = lambda maps, *rest, **options: (
            with_graph.append(maps.requires_grad) or update(maps, *rest, **options)
        )
        trainer(accumulate_grad_batches=2, callbacks=[recorder], limit_val_batches=0).fit(module, data)
        assert with_graph == [False, False]  # batches that wait would hold theirs
        expected = FeatureMemory(3, 12)
        grid = module.network.grid
        labels = [grid.pad_target(batch["mask"], ignore_index=255) for batch in data.train_dataloader()]
        assert recorder.memories[0].abs().max() == 0
        expected.update(torch.cat(features[:2]), torch.cat(labels[:2]), momentum=0.7)
        torch.testing.assert_close(recorder.memories[1], expected.memory, rtol=0, atol=0)
        expected.update(features[2], labels[2], momentum=0.7)
        torch.testing.assert_close(recorder.memories[2], expected.memory, rtol=0, atol=0)

    def test_batches_of_a_training_that_was_interrupted_are_forgotten(self, data: Any, trainer: Make) -> None:
        class Interrupt(Callback):
            def on_train_batch_end(self, *_: Any) -> None:
                raise KeyboardInterrupt

        module, recorder = make(memory_momentum_rule="constant"), Recorder()
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            trainer(accumulate_grad_batches=2, callbacks=[Interrupt()], limit_val_batches=0).fit(module, data)
        features: list[Tensor] = []
        module.network.class_head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
        trainer(accumulate_grad_batches=2, callbacks=[recorder], limit_val_batches=0).fit(module, data)
        expected = FeatureMemory(3, 12)
        labels = [module.network.grid.pad_target(b["mask"], ignore_index=255) for b in data.train_dataloader()]
        expected.update(torch.cat(features[:2]), torch.cat(labels[:2]), momentum=0.9)
        torch.testing.assert_close(recorder.memories[1], expected.memory, rtol=0, atol=0)

    def test_accumulated_batches_of_different_sizes(self, data: Any, trainer: Make) -> None:
        samples = data.samples("train")
        for sample in samples[2:]:
            sample["image"], sample["mask"] = sample["image"].mT, sample["mask"].mT
        data.samples = lambda split: samples
        module, recorder = make(update_strategy="mean"), Recorder()
        features: list[Tensor] = []
        module.network.class_head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
        trainer(accumulate_grad_batches=2, callbacks=[recorder], limit_val_batches=0).fit(module, data)
        assert [maps.shape[-2:] for maps in features] == [(3, 4), (4, 3)]
        sums, counts = torch.zeros(3, 12, dtype=torch.float64), torch.zeros(3)
        for maps, batch in zip(features, data.train_dataloader(), strict=True):
            labels = module.network.grid.pad_target(batch["mask"], ignore_index=255)
            fine = F.interpolate(maps.double(), scale_factor=16, mode="bilinear").movedim(1, -1)
            for k in range(3):
                sums[k] += fine[labels == k].sum(0)
                counts[k] += (labels == k).sum()
        torch.testing.assert_close(recorder.memories[1][:, 0], (sums / counts[:, None]).float())

    @pytest.mark.parametrize(
        "arguments", [{}, {"memory": "statistics"}, {"slots": 2}, {"initialization": "random_pixel"}]
    )
    def test_resume_continues_bit_for_bit(
        self, data: Any, trainer: Make, tmp_path: Path, arguments: dict[str, Any]
    ) -> None:
        class Stop(Callback):
            def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
                if trainer.current_epoch == 0:
                    trainer.save_checkpoint(tmp_path / "half.ckpt")

        straight = make(dropout=0.0, **arguments)
        trainer(max_epochs=2, callbacks=[Stop()]).fit(straight, data)
        resumed = make(dropout=0.0, **arguments)
        trainer(max_epochs=2).fit(resumed, data, ckpt_path=tmp_path / "half.ckpt")
        theirs = straight.state_dict()
        for name, ours in resumed.state_dict().items():
            assert torch.equal(ours, theirs[name]), name
        assert resumed.network.memory.seen.any()

    def test_it_gets_no_gradient(self, data: Any, trainer: Make) -> None:
        module, recorder = make(consistency_from_epoch=0), Recorder()
        trainer(max_steps=2, callbacks=[recorder]).fit(module, data)
        step = recorder.steps[1]
        weighted = step["train/loss_pixel"] + 0.4 * step["train/loss_context"] + 0.4 * step["train/loss_auxiliary"]
        assert step["train/loss"] == pytest.approx(weighted + step["train/loss_consistency"], rel=1e-5)
        assert not [name for name, _ in module.named_parameters() if "memory" in name]
        assert not module.network.memory.memory.requires_grad

    @pytest.mark.parametrize("rule", ["poly", "lr", "constant"])
    def test_random_numbers_stay_without_momentum(self, data: Any, trainer: Make, rule: str) -> None:
        module = make(initialization="random", memory_momentum=0.0, memory_momentum_rule=rule)
        start = module.network.memory.memory.clone()
        trainer(max_epochs=1).fit(module, data)
        assert start.any()
        assert torch.equal(module.network.memory.memory, start)

    @pytest.mark.parametrize("slots", [1, 2])
    def test_random_pixels_and_slots_fill_it(self, data: Any, trainer: Make, slots: int) -> None:
        module, recorder = make(slots=slots, initialization="random_pixel"), Recorder()
        trainer(max_epochs=2, callbacks=[recorder]).fit(module, data)
        assert [step["train/memory_seen_classes"] for step in recorder.steps] == [3] * 4  # from their first slot on
        assert module.network.memory.seen.shape == (3, slots)
        assert module.network.memory.seen.all()


@pytest.mark.parametrize(
    ("rule", "base", "expected"),
    [
        ("poly", 0.9, [0.9, 0.75**0.9 * 0.891 + 0.009, 0.5**0.9 * 0.891 + 0.009, 0.25**0.9 * 0.891 + 0.009]),
        ("constant", 0.1, [0.1] * 4),
        # two iterations of warm-up from 1e-4, then (1 - (t - 2) / 2) ** 0.9, the floor at last
        ("lr", 0.9, [0.9 * (1e-4 + (0.05 - 1e-4) / 2) / 0.05, 0.9, 0.9 * 0.5**0.9, 0.9 * 1e-6 / 0.05]),
    ],
)
def test_momentum_rules(data: Any, trainer: Make, rule: str, base: float, expected: list[float]) -> None:
    recorder = Recorder()
    module = make(memory_momentum_rule=rule, memory_momentum=base, lr=0.05, warmup_iters=2, head_lr_multiplier=5.0)
    trainer(max_epochs=2, callbacks=[recorder]).fit(module, data)
    assert [step["train/memory_momentum"] for step in recorder.steps] == pytest.approx(expected, rel=1e-5)


def test_lr_rule_is_the_annealed_one_with_the_authors_schedule(data: Any, trainer: Make) -> None:
    """m_0 / lr_0 · lr(t) of a rate that decays to lr_0 / 100: the same values, by way of the optimizer."""
    found = []
    for rule, schedule in (("poly", {}), ("lr", {"lr": 0.05, "min_lr": 5e-4, "lr_decay_to": "min_lr"})):
        recorder = Recorder()
        trainer(max_epochs=2, callbacks=[recorder]).fit(make(memory_momentum_rule=rule, **schedule), data)
        found.append([step["train/memory_momentum"] for step in recorder.steps])
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_lr_rule_follows_a_plateau(data: Any, trainer: Make) -> None:
    recorder = Recorder()
    plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode="max", patience=0, factor=0.1, threshold=9.0)
    module = make(memory_momentum_rule="lr", lr_scheduler=plateau)
    trainer(max_epochs=3, callbacks=[recorder]).fit(module, data)
    momenta = [step["train/memory_momentum"] for step in recorder.steps]
    assert momenta == pytest.approx([0.9, 0.9, 0.9, 0.9, 0.09, 0.09], rel=1e-5)


class TestConsistency:
    def test_is_the_mean_over_seen_rows(self) -> None:
        module = make(slots=2, consistency_from_epoch=0)
        memory, head = module.network.memory, module.network.head
        memory.memory.copy_(torch.randn(3, 2, 12))
        memory.seen.copy_(torch.tensor([[True, False], [False, False], [True, True]]))
        head.norm.running_mean.uniform_(-1, 1)
        head.norm.running_var.uniform_(0.5, 2)
        head.eval()
        with torch.no_grad():
            rows = [(0, 0), (2, 0), (2, 1)]
            logits = [head(memory.memory[k, s][None, :, None, None])[0, :, 0, 0] for k, s in rows]
            losses = [-row.log_softmax(0)[k] for row, (k, _) in zip(logits, rows, strict=True)]
        head.train()
        before = {name: value.clone() for name, value in head.state_dict().items()}
        loss = module._consistency()
        torch.testing.assert_close(loss, torch.stack(losses).mean())
        loss.backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())
        assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())

    @pytest.mark.parametrize("seen", [0, 1])
    def test_of_one_row_and_of_none(self, seen: int) -> None:
        module = make(consistency_from_epoch=0)
        module.network.memory.seen[:seen] = True
        loss = module._consistency()
        loss.backward()
        assert torch.isfinite(loss)
        assert (loss == 0) == (seen == 0)
        assert all(torch.isfinite(parameter.grad).all() for parameter in module.network.head.parameters())

    def test_leaves_running_statistics_to_the_images(self, data: Any, trainer: Make) -> None:
        def statistics(consistency: int | None) -> list[Tensor]:
            torch.manual_seed(0)
            module = make(consistency_from_epoch=consistency, dropout=0.0)
            trainer(max_steps=1).fit(module, data)
            return [module.network.head.norm.running_mean, module.network.head.norm.running_var]

        for with_it, without in zip(statistics(0), statistics(None), strict=True):
            assert torch.equal(with_it, without)


def test_void_batches_change_nothing_and_stay_finite(data: Any, trainer: Make) -> None:
    samples = data.samples("train")
    for sample in samples:
        sample["mask"].fill_(255)
    data.samples = lambda split: samples
    module, recorder = make(consistency_from_epoch=0), Recorder()
    trainer(callbacks=[recorder], limit_val_batches=0).fit(module, data)
    assert recorder.memories[-1].abs().max() == 0
    assert recorder.steps[-1]["train/memory_seen_classes"] == 0
    assert recorder.steps[-1]["train/loss"] == 0
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_another_void_label_trains_the_same(data: Any, trainer: Make) -> None:
    found = []
    for ignore_index in (255, 7):
        torch.manual_seed(0)
        samples = data.samples("train")
        for sample in samples:
            sample["mask"][sample["mask"] == 255] = ignore_index
        module, recorder = make(ignore_index=ignore_index, consistency_from_epoch=0), Recorder()
        trainer(callbacks=[recorder], limit_val_batches=0).fit(module, DataLoader(samples, batch_size=2))
        found.append((recorder.steps, recorder.memories))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_bf16_mixed_precision(data: Any, trainer: Make) -> None:
    module, recorder = make(consistency_from_epoch=0, context="aspp", loss="rmi"), Recorder()
    trainer(precision="bf16-mixed", callbacks=[recorder]).fit(module, data)
    assert module.network.memory.memory.dtype == torch.float32
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in recorder.steps)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


@pytest.mark.parametrize("memory", ["features", "statistics"])
def test_bf16_true_precision_keeps_the_memory_in_single(data: Any, trainer: Make, memory: str) -> None:
    consistency = 0 if memory == "features" else None
    module, recorder = make(consistency_from_epoch=consistency, memory=memory, memory_momentum=1e-4), Recorder()
    run = trainer(precision="bf16-true", max_epochs=2, callbacks=[recorder])
    run.fit(module, data)
    run.test(module, data, verbose=False)
    assert next(module.network.parameters()).dtype == torch.bfloat16
    assert module.network.memory.memory.dtype == torch.float32
    assert (recorder.memories[1] != recorder.memories[0]).any()
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in recorder.steps)


def test_more_inference_passes_follow_the_prediction() -> None:
    """Later passes mix the class logits with the mean of the predictions before, (2 own + 1.5 previous) / 2.5."""
    once, twice, thrice = (make(memory="statistics", inference_passes=passes) for passes in (1, 2, 3))
    for module in (once, twice, thrice):
        module.eval()
        module.network.memory.memory.copy_(torch.tensor([[-1.0, 1.0], [0.0, 1.0], [2.0, 0.5]]))
        module.network.memory.seen.fill_(True)
    twice.load_state_dict(once.state_dict())
    thrice.load_state_dict(once.state_dict())
    images = torch.randn(1, 3, 33, 49)  # a size that fits, so that logits at the features are those at every 16th pixel
    with torch.no_grad():
        first = once(images)[..., ::16, ::16]
        head, own = once.network.class_head, []
        handle = head.register_forward_hook(lambda _, __, output: own.append(output))
        once(images)
        handle.remove()
        handle = head.register_forward_hook(lambda _, __, output: (2 * output + 1.5 * first) / 2.5)
        second = once(images)
        assert not torch.allclose(second[..., ::16, ::16], first)
        torch.testing.assert_close(twice(images), second)
        handle.remove()
        both = (first + second[..., ::16, ::16]) / 2
        head.register_forward_hook(lambda _, __, output: (2 * output + 1.5 * both) / 2.5)
        third = once(images)
        assert not torch.allclose(third, second)
        torch.testing.assert_close(thrice(images), third)
        assert twice.train()(torch.randn(2, 3, 33, 49)).shape == (2, 3, 33, 49)


def test_checkpoint_loads_without_the_weights_file(data: Any, trainer: Make, tmp_path: Path) -> None:
    weights = tmp_path / "resnet18.pth"
    torch.save(resnet18().state_dict(), weights)
    module = make(encoder_weights=str(weights), context="aspp", atrous_rates=(1, 2, 3), loss={"name": "rmi"}, slots=2)
    run = trainer(max_steps=1)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "last.ckpt")
    weights.unlink()
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["slots"] == 2
    loaded = MCIBIModule.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu")
    assert torch.equal(loaded.network.memory.memory, module.network.memory.memory)
    assert torch.equal(loaded.network.memory.seen, module.network.memory.seen)
    images = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images), module.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"context": "apsp"},
            "context: expected one of 'none', 'ppm', .*'upernet_aspp', got 'apsp'",
        ),
        ({"memory": True}, "memory: expected one of 'features', 'statistics', None, got True"),
        ({"aggregation": "firm"}, "aggregation: expected one of 'soft', 'hard', got 'firm'"),
        ({"initialization": "zeros"}, "initialization: expected one of 'mean', 'random_pixel', 'random', got 'zeros'"),
        ({"update_strategy": "max"}, "update_strategy: expected one of 'cosine', 'mean', got 'max'"),
        ({"update_strategy": "mean", "slots": 2}, "update_strategy must be 'cosine' with slots=2"),
        ({"memory_momentum_rule": "exp"}, "memory_momentum_rule: expected one of 'poly', 'lr', 'constant', got 'exp'"),
        ({"memory_momentum": 1.5}, r"memory_momentum must be in \[0, 1\], got 1.5"),
        ({"memory": "statistics", "slots": 2}, "slots must be 1 with memory='statistics'.*got 2"),
        ({"memory": "statistics", "consistency_from_epoch": 1}, "consistency_from_epoch must be null with memory="),
        ({"memory_gradient": "old"}, "memory_gradient: expected one of 'read', 'updated', got 'old'"),
        ({"memory": "statistics", "memory_gradient": "updated"}, "memory_gradient must be 'read' with memory="),
        ({"channels": 0}, "channels: expected a positive integer, got 0"),
        ({"inference_passes": 0}, "inference_passes: expected a positive integer, got 0"),
        ({"atrous_rates": []}, "atrous_rates must be at least one positive number"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_a_batch_of_one_names_batch_size(data: Any, trainer: Make) -> None:
    data.batch_size = 1
    with pytest.raises(ValueError, match="use batch_size of 2 or more"):
        trainer().fit(make(context="ppm"), data)


def test_two_processes_keep_one_memory(data: Any, trainer: Make, tmp_path: Path) -> None:
    """DDP with gloo and no search for unused parameters: both end with the memory of the doubled batch."""

    class Save(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.labels = pl_module.network.grid.pad_target(batch["mask"], ignore_index=255)

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            state = pl_module.network.state_dict()
            found = {"features": features[-1], "labels": self.labels, "state": state}
            torch.save(found, tmp_path / f"{trainer.global_rank}_{trainer.global_step}.pt")

    module = make(context="aspp", consistency_from_epoch=0)
    features: list[Tensor] = []
    module.network.class_head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
    data.sizes["train"] = 8
    trainer(devices=2, strategy="ddp_fork", max_steps=2, callbacks=[Save()], limit_val_batches=0).fit(module, data)
    expected = FeatureMemory(3, 12)
    for step in (1, 2):
        ranks = [torch.load(tmp_path / f"{rank}_{step}.pt", weights_only=True) for rank in range(2)]
        assert not torch.equal(ranks[0]["features"], ranks[1]["features"])
        momentum = 0.9 if step == 1 else 0.5**0.9 * 0.891 + 0.009
        expected.update(
            torch.cat([rank["features"] for rank in ranks]),
            torch.cat([rank["labels"] for rank in ranks]),
            momentum=momentum,
        )
        for rank in ranks:
            torch.testing.assert_close(rank["state"]["memory.memory"], expected.memory)
        for name in ("memory.memory", "memory.seen", "head.classifier.weight"):
            assert torch.equal(ranks[0]["state"][name], ranks[1]["state"][name])
