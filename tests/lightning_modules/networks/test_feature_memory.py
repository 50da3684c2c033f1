import copy
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from beyondpixel.lightning_modules.networks import FeatureMemory, StatisticsMemory

Make = Callable[..., tuple[Tensor, Tensor]]
CLASSES, CHANNELS = 4, 6


def filled(memory: FeatureMemory, rows: Tensor | None = None) -> FeatureMemory:
    """Put something into every slot."""
    memory.memory.copy_(torch.randn_like(memory.memory) if rows is None else rows)
    memory.seen.fill_(True)
    return memory


def constant(*vectors: list[float]) -> Tensor:
    """One pixel for each vector, in one row: (1, C, 1, n)."""
    return torch.tensor(vectors).T[None, :, None]


@pytest.mark.parametrize("case", range(3))
def test_authors_update(shared: Path, case: int) -> None:
    arrays = np.load(shared / "reference" / "mcibi_update.npz")
    setting = json.loads(bytes(arrays["meta"]))[case]
    memory = FeatureMemory(setting["K"], setting["C"], setting["slots"])
    for step, lr in enumerate(setting["lrs"]):
        features, labels, expected = (
            torch.from_numpy(arrays[f"{setting['id']}_{name}{step}"]) for name in ("features", "labels", "memory")
        )
        momentum = setting["base_momentum"] / setting["base_lr"] * lr
        memory.update(features, labels, momentum=momentum, strategy=setting["strategy"].removesuffix("_similarity"))
        torch.testing.assert_close(memory.memory, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "image_size"),
    [
        ((4, 6), (32, 48)),
        ((5, 7), (33, 47)),
        ((5, 6), (5, 6)),
        ((1, 1), (9, 5)),
        ((1, 6), (8, 41)),
        ((9, 11), (5, 4)),
        ((9, 3), (4, 24)),
    ],
)
@pytest.mark.parametrize(("strategy", "slots"), [("mean", 1), ("cosine", 1), ("cosine", 3)])
def test_equals_the_update_at_full_size(
    *,
    size: tuple[int, int],
    image_size: tuple[int, int],
    strategy: Any,
    slots: int,
    direct_memory: ModuleType,
    labeled_features: Make,
) -> None:
    memory = FeatureMemory(CLASSES, CHANNELS, slots)
    for step in range(slots + 2):
        features, target = labeled_features(size, image_size, num_classes=CLASSES)
        if step % 2 == 0:
            target[target == 1] = 255  # fills its slots later
        expected, seen = direct_memory.direct_update(
            memory.memory, memory.seen, features, target, momentum=0.7, strategy=strategy
        )
        memory.update(features, target, momentum=0.7, strategy=strategy)
        torch.testing.assert_close(memory.memory.double(), expected, rtol=0, atol=1e-6)
        assert torch.equal(memory.seen, seen)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    image_size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    slots=st.integers(1, 3),
    momentum=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_equals_the_update_at_full_size_for_any_size(
    *,
    size: tuple[int, int],
    image_size: tuple[int, int],
    slots: int,
    momentum: float,
    seed: int,
    direct_memory: ModuleType,
) -> None:
    torch.manual_seed(seed)
    memory = filled(FeatureMemory(CLASSES, CHANNELS, slots))
    features = torch.randn(2, CHANNELS, *size, dtype=torch.float64)
    target = torch.randint(-1, CLASSES, (2, *image_size))
    expected, _ = direct_memory.direct_update(
        memory.memory, memory.seen, features, target, momentum=momentum, ignore_index=-1
    )
    memory.update(features, target, momentum=momentum, ignore_index=-1)
    torch.testing.assert_close(memory.memory.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("strategy", ["cosine", "mean"])
def test_no_precision_is_lost_in_any_type_and_layout(
    dtype: torch.dtype, layout: str, strategy: Any, direct_memory: ModuleType, labeled_features: Make
) -> None:
    features, target = labeled_features((5, 6), (33, 40), num_classes=CLASSES)
    features = (10 * features + 50).to(dtype)  # cosines near 1
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        features = features.repeat_interleave(2, 3)[..., ::2]
    memory = filled(FeatureMemory(CLASSES, CHANNELS), 50 + torch.randn(CLASSES, 1, CHANNELS))
    expected, _ = direct_memory.direct_update(
        memory.memory, memory.seen, features.double(), target, momentum=0.7, strategy=strategy
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory.update(features, target, momentum=0.7, strategy=strategy)
    torch.testing.assert_close(memory.memory, expected.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("build", [FeatureMemory, StatisticsMemory])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_stays_float32_in_half_precision(build: Make, dtype: torch.dtype, labeled_features: Make) -> None:
    """Small updates add up to what they add up to in single precision; bfloat16 would round each away."""
    features, target = labeled_features((4, 4), (16, 16), num_classes=CLASSES)
    single: Any = build(CLASSES, CHANNELS)
    half: Any = nn.Sequential(build(CLASSES, CHANNELS), nn.Linear(2, 2)).to(dtype)
    assert half[1].weight.dtype == dtype
    for scale in (1, *[2] * 20):
        for memory in (single, half[0]):
            memory.update((scale * features).to(dtype), target, momentum=1e-3, strategy="mean")
    assert {buffer.dtype for buffer in half[0].buffers()} == {torch.float32, torch.bool}
    assert torch.equal(half[0].memory, single.memory)
    kept = single.memory.clone()
    assert torch.equal(single.to(dtype).memory, kept)
    assert half[0].to("meta").memory.device.type == "meta"
    assert single.double().memory.dtype == torch.float64


class DrawsLikeCuda(TorchDispatchMode):
    """Refuses a generator of another device than the numbers', as CUDA does and the meta device does not."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        generator = (kwargs or {}).get("generator")
        assert generator is None or generator.device == result.device
        return result


@pytest.mark.parametrize(
    "build",
    [
        partial(FeatureMemory, initialization="random_pixel"),
        partial(FeatureMemory, initialization="random"),
        StatisticsMemory,
    ],
)
def test_it_can_be_built_on_another_device_by_default(build: Make) -> None:
    with torch.device("meta"), DrawsLikeCuda():
        memory: Any = build(CLASSES, CHANNELS)
    assert {buffer.device.type for buffer in memory.buffers()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("ignore_index", [255, -100, 2])
def test_labels_of_any_integer_type_and_void_label(
    dtype: torch.dtype, ignore_index: int, labeled_features: Make
) -> None:
    features, target = labeled_features((4, 4), (16, 16), num_classes=CLASSES)
    void = target == 255
    target[void] = 0 if ignore_index == -100 and dtype == torch.uint8 else ignore_index
    memory, expected = FeatureMemory(CLASSES, CHANNELS), FeatureMemory(CLASSES, CHANNELS)
    memory.update(features, target.to(dtype), momentum=0.5, ignore_index=ignore_index)
    expected.update(features, target.masked_fill(target == ignore_index, 255), momentum=0.5)
    assert torch.equal(memory.memory, expected.memory)
    assert memory.seen[2].item() is (ignore_index != 2)


def test_a_byte_that_looks_like_a_negative_void_label_is_none(labeled_features: Make) -> None:
    features, _ = labeled_features((4, 4), (16, 16), num_classes=CLASSES)
    target = torch.full((2, 16, 16), 156, dtype=torch.uint8)  # -100 in eight bits
    with pytest.raises(ValueError, match="got the label 156"):
        FeatureMemory(CLASSES, CHANNELS).update(features, target, momentum=0.5, ignore_index=-100)


@pytest.mark.parametrize(("strategy", "slots"), [("mean", 1), ("cosine", 1), ("cosine", 2)])
def test_no_tensor_is_near_the_upsampled_features_in_size(strategy: Any, slots: int) -> None:
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else [result]:
                if isinstance(value, Tensor):
                    self.numel = max(self.numel, value.untyped_storage().nbytes() // value.element_size())
            return result

    memory = filled(FeatureMemory(CLASSES, 256, slots))
    features, target = torch.randn(3, 256, 16, 16), torch.randint(CLASSES, (3, 128, 128))
    largest = Largest()
    with largest:
        memory.update(features, target, momentum=0.5, strategy=strategy)
    # one image's pixels count: without channels, and without a map for each class
    assert largest.numel <= 256 * 3 * 16 * 16
    assert largest.numel < 3 * 256 * 128 * 128 / 50


def test_equal_weights_where_all_pixels_match() -> None:
    memory = filled(FeatureMemory(1, 2), torch.tensor([[[3.0, 4.0]]]))
    # in the memory's direction, but of other lengths
    memory.update(constant([3.0, 4.0], [6.0, 8.0], [15.0, 20.0]), torch.zeros(1, 1, 3, dtype=torch.long), momentum=0.5)
    torch.testing.assert_close(memory.memory, torch.tensor([[[5.5, 22 / 3]]]))


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_weights_by_hand(scale: float) -> None:
    memory = filled(FeatureMemory(1, 2), scale * torch.tensor([[[1.0, 0.0]]]))
    # cosines 1, 0 and -1: weights 0, 1/3 and 2/3
    features = scale * constant([5.0, 0.0], [0.0, 3.0], [-6.0, 0.0])
    memory.update(features, torch.zeros(1, 1, 3, dtype=torch.long), momentum=0.5)
    torch.testing.assert_close(memory.memory / scale, torch.tensor([[[0.5 - 2.0, 0.5]]]))


def test_slots_fill_one_a_batch_and_then_attract_the_nearest() -> None:
    memory = FeatureMemory(2, 2, slots=2)
    target = torch.tensor([[[0, 0]]])
    memory.update(constant([1.0, 0.0], [3.0, 0.0]), target, momentum=0.5)
    assert memory.seen.tolist() == [[True, False], [False, False]]
    memory.update(constant([0.0, 1.0], [0.0, 7.0]), target, momentum=0.5)
    assert memory.memory[0].tolist() == [[2.0, 0.0], [0.0, 4.0]]
    # cosines with slot 0: 0.8; with slot 1: 1 and 0.8, so only the second of the two moves it
    memory.update(constant([4.0, 3.0], [0.0, 2.0]), target, momentum=0.5)
    torch.testing.assert_close(memory.memory[0], torch.tensor([[3.0, 1.5], [0.0, 3.0]]))
    assert not memory.seen[1].any()


def test_slot_without_pixels_stays_as_it_is() -> None:
    memory = filled(FeatureMemory(1, 2, slots=2), torch.tensor([[[1.0, 0.1], [-0.3, 1.0]]]))
    memory.update(constant([1.0, 0.0]), torch.zeros(1, 2, 2, dtype=torch.long), momentum=0.9)
    assert torch.equal(memory.memory[0, 1], torch.tensor([-0.3, 1.0]))
    assert not torch.equal(memory.memory[0, 0], torch.tensor([1.0, 0.1]))


def test_void_and_absent_classes_change_nothing(labeled_features: Make) -> None:
    features, target = labeled_features((4, 4), (16, 16), num_classes=CLASSES)
    memory = filled(FeatureMemory(CLASSES, CHANNELS))
    before = memory.memory.clone()
    memory.update(features, torch.full_like(target, 255), momentum=0.5)
    memory.update(features[:0], target[:0], momentum=0.5)
    assert torch.equal(memory.memory, before)
    memory.update(features, target.masked_fill(target == 1, 255), momentum=0.5)
    assert torch.equal(memory.memory[1], before[1])
    assert all(not torch.equal(memory.memory[k], before[k]) for k in (0, 2, 3))


def test_zeros_are_a_representation_like_any_other() -> None:
    memory = FeatureMemory(1, 2)
    target = torch.zeros(1, 1, 1, dtype=torch.long)
    memory.update(constant([0.0, 0.0]), target, momentum=0.5)
    memory.update(constant([2.0, 4.0]), target, momentum=0.5)
    assert memory.memory.tolist() == [[[1.0, 2.0]]]


@pytest.mark.parametrize("strategy", ["cosine", "mean"])
def test_momentum_0_keeps_and_1_replaces(strategy: Any, labeled_features: Make) -> None:
    features, target = labeled_features((4, 4), (16, 16), num_classes=CLASSES)
    memory = filled(FeatureMemory(CLASSES, CHANNELS))
    before = memory.memory.clone()
    memory.update(features, target, momentum=0, strategy=strategy)
    assert torch.equal(memory.memory, before)
    memory.update(torch.full_like(features, 2.0), target, momentum=1, strategy=strategy)
    torch.testing.assert_close(memory.memory, torch.full_like(before, 2.0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("initialization", ["mean", "random_pixel"])
def test_features_that_are_not_finite_change_nothing(value: float, initialization: Any, labeled_features: Make) -> None:
    features, target = labeled_features((4, 4), (16, 16), num_classes=CLASSES)
    memory = FeatureMemory(CLASSES, CHANNELS, initialization=initialization)
    memory.update(features, target.masked_fill(target == 1, 255), momentum=0.5)
    before = copy.deepcopy(memory.state_dict())
    features[1, 2, 3, 3] = value
    memory.update(features, target, momentum=0.5)
    assert all(torch.equal(before[name], value) for name, value in memory.state_dict().items())


@pytest.mark.parametrize("slots", [1, 2])
def test_random_pixel_is_one_of_its_class(slots: int, direct_memory: ModuleType, labeled_features: Make) -> None:
    memories = [FeatureMemory(CLASSES, CHANNELS, slots, initialization="random_pixel", seed=seed) for seed in range(3)]
    for slot in range(slots):
        features, target = labeled_features((3, 4), (11, 13), num_classes=CLASSES)
        target[target == 2] = 255
        pixels = direct_memory.upsampled_pixels(features, target)
        for memory in memories:
            memory.update(features, target, momentum=0.5)
            for k in (0, 1, 3):
                distance = (pixels[target.flatten() == k] - memory.memory[k, slot].double()).abs().amax(1)
                assert distance.min() < 1e-6
            assert not memory.seen[2].any()
        assert not torch.equal(memories[0].memory[0, slot], memories[1].memory[0, slot])
    if slots == 2:
        assert not torch.equal(memories[0].memory[0, 0], memories[0].memory[0, 1])
    expected, _ = direct_memory.direct_update(memories[0].memory, memories[0].seen, features, target, momentum=0.5)
    memories[0].update(features, target, momentum=0.5)
    torch.testing.assert_close(memories[0].memory.double(), expected, rtol=0, atol=1e-6)


def test_every_pixel_of_the_class_may_be_drawn_and_no_other() -> None:
    features = constant([1.0], [2.0], [3.0], [4.0], [5.0])
    target = torch.tensor([[[0, 255, 0, 1, 0]]])
    draws = []
    for seed in range(60):
        memory = FeatureMemory(2, 1, initialization="random_pixel", seed=seed)
        memory.update(features, target, momentum=0.5)
        draws.append(memory.memory[0].item())
        assert memory.memory[1].item() == 4.0
    # a fair draw leaves each of the three outside 8 ... 32 once in ten thousand times
    assert {value: 8 <= draws.count(value) <= 32 for value in sorted(set(draws))} == {1.0: True, 3.0: True, 5.0: True}


def test_global_random_state_is_left_alone(labeled_features: Make) -> None:
    features, target = labeled_features((4, 4), (16, 16), num_classes=CLASSES)
    state = torch.get_rng_state()
    FeatureMemory(CLASSES, CHANNELS, initialization="random_pixel").update(features, target, momentum=0.5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("initialization", ["mean", "random_pixel"])
def test_saved_and_restored_bit_by_bit(initialization: Any, tmp_path: Path, labeled_features: Make) -> None:
    def fresh() -> FeatureMemory:
        return FeatureMemory(CLASSES, CHANNELS, 2, initialization=initialization)

    memory = fresh()
    features, target = labeled_features((4, 4), (16, 16), num_classes=CLASSES)
    memory.update(features, target.masked_fill(target == 1, 255), momentum=0.5)
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    restored = fresh()
    restored.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    assert set(restored.state_dict()) == {"memory", "seen"}
    for _ in range(2):
        assert torch.equal(restored.memory, memory.memory)
        assert torch.equal(restored.seen, memory.seen)
        for each in (memory, restored):  # goes on alike, first sights included
            each.update(features, target, momentum=0.5)


def test_update_leaves_earlier_results_and_their_gradients_alone(labeled_features: Make) -> None:
    features, target = labeled_features((4, 4), (16, 16), num_classes=CLASSES)
    memory = filled(FeatureMemory(CLASSES, CHANNELS))
    layer = nn.Conv2d(CHANNELS, CHANNELS, 1).double()
    before = memory.memory.clone()
    representations = memory.representations()
    weights = torch.randn(CLASSES, requires_grad=True)
    loss = (weights[:, None, None] * representations).sum()
    memory.update(layer(features), target, momentum=0.5)
    loss.backward()
    assert torch.equal(representations, before)
    torch.testing.assert_close(weights.grad, before.sum((1, 2)))
    assert layer.weight.grad is None
    assert not memory.memory.requires_grad
    assert list(memory.parameters()) == []


def test_random_numbers_are_the_seeds_and_stay_without_momentum() -> None:
    torch.manual_seed(1)
    first = FeatureMemory(50, 400, initialization="random", seed=3)
    torch.manual_seed(2)
    again = FeatureMemory(50, 400, initialization="random", seed=3)
    other = FeatureMemory(50, 400, initialization="random", seed=4)
    start = first.memory.clone()
    assert first.seen.all()
    assert torch.equal(again.memory, start)
    assert not torch.equal(other.memory, start)
    assert (start.mean().item(), start.std().item()) == pytest.approx((0, 1), abs=0.02)
    features, target = torch.full((1, 400, 2, 2), 3.0), torch.zeros(1, 4, 4, dtype=torch.long)
    first.update(features, target, momentum=0.0)
    assert torch.equal(first.memory, start)
    first.update(features, target, momentum=0.25)
    torch.testing.assert_close(first.memory[0], 0.75 * start[0] + 0.25 * 3)
    assert torch.equal(first.memory[1:], start[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, r"num_classes: expected a positive integer, got 0"),
        ({"channels": 2.5}, r"channels: expected a positive integer, got 2.5"),
        ({"slots": True}, r"slots: expected a positive integer, got True"),
        ({"initialization": "zeros"}, r"initialization: expected one of 'mean', 'random_pixel', 'random', got 'zeros'"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureMemory(**{"num_classes": 2, "channels": 3, **arguments})


FEATURES, TARGET = torch.ones(1, 3, 2, 2), torch.zeros(1, 4, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"momentum": 1.01}, ValueError, r"momentum: expected a number from 0 .* to 1 .*, got 1.01"),
        ({"momentum": -0.1}, ValueError, r"momentum: .* got -0.1"),
        ({"momentum": math.nan}, ValueError, r"momentum: .* got nan"),
        ({"strategy": "median"}, ValueError, r"strategy: expected one of 'cosine', 'mean', got 'median'"),
        ({"strategy": "mean"}, ValueError, r"strategy: expected 'cosine' as slots is 2, got 'mean'; .* Set slots=1"),
        ({"features": FEATURES.long()}, TypeError, r"features: expected a floating-point tensor, got torch.int64"),
        (
            {"features": FEATURES[:, :2]},
            ValueError,
            r"features: expected the shape \(N, 3, h, w\).* got \(1, 2, 2, 2\)",
        ),
        ({"features": FEATURES[0]}, ValueError, r"features: expected the shape"),
        ({"features": FEATURES[..., :0]}, ValueError, r"features: expected the shape .* got \(1, 3, 2, 0\)"),
        ({"target": TARGET.float()}, TypeError, r"target: expected integer labels .* got torch.float32"),
        ({"target": TARGET[0]}, ValueError, r"target: expected labels of the shape \(1, H, W\).* got \(4, 4\)"),
        ({"target": TARGET.repeat(2, 1, 1)}, ValueError, r"target: expected labels .* got \(2, 4, 4\)"),
        ({"target": TARGET + 5}, ValueError, r"target: expected labels in 0 … 4 or ignore_index 255, got the label 5"),
        ({"target": TARGET - 1}, ValueError, r"target: .* got the label -1; map it to a class"),
        ({"target": TARGET.to("meta")}, ValueError, r"target: expected it on the device of the memory, cpu, got meta"),
    ],
)
def test_wrong_updates_say_why_and_change_nothing(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    memory = filled(FeatureMemory(5, 3, slots=2))
    before = memory.memory.clone()
    with pytest.raises(error, match=message):
        memory.update(**{"features": FEATURES, "target": TARGET, "momentum": 0.5, **arguments})
    assert torch.equal(memory.memory, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("strategy", "slots"), [("mean", 1), ("cosine", 1), ("cosine", 2)])
@pytest.mark.parametrize("initialization", ["mean", "random_pixel"])
def test_cuda_equals_the_cpu(strategy: Any, slots: int, initialization: Any, labeled_features: Make) -> None:
    memory = FeatureMemory(CLASSES, CHANNELS, slots, initialization=initialization)
    on_device = copy.deepcopy(memory).cuda()
    for _ in range(slots + 2):
        features, target = labeled_features((5, 7), (33, 47), num_classes=CLASSES)
        memory.update(features, target, momentum=0.7, strategy=strategy)
        on_device.update(features.cuda(), target.cuda(), momentum=0.7, strategy=strategy)
        torch.testing.assert_close(on_device.memory.cpu(), memory.memory, rtol=0, atol=1e-6)
