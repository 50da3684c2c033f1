import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from beyondpixel.lightning_modules.networks import FeatureMemory, StatisticsMemory

Make = Callable[..., tuple[Tensor, Tensor]]
CLASSES, CHANNELS = 4, 32


@pytest.mark.parametrize(
    ("size", "image_size"), [((4, 6), (32, 48)), ((5, 7), (33, 47)), ((5, 6), (5, 6)), ((9, 11), (5, 4))]
)
def test_equals_statistics_of_full_size_means(
    *, size: tuple[int, int], image_size: tuple[int, int], direct_memory: ModuleType, labeled_features: Make
) -> None:
    memory = StatisticsMemory(CLASSES, CHANNELS)
    for step in range(3):
        features, target = labeled_features(size, image_size, num_classes=CLASSES, channels=CHANNELS)
        if step != 1:
            target[target == (1 if step == 0 else 0)] = 255
        momentum = (0.1, 0.1, 0.6)[step]
        expected = direct_memory.direct_statistics(memory.memory, features, target, momentum=momentum)
        # 0.1 is the default
        memory.update(features, target, **({} if momentum == 0.1 else {"momentum": momentum}))
        torch.testing.assert_close(memory.memory.double(), expected, rtol=0, atol=1e-6)
        assert memory.seen.flatten().tolist() == [True, step > 0, True, True]


def test_starts_from_the_standard_normal_by_hand() -> None:
    memory = StatisticsMemory(2, 3)
    memory.update(torch.tensor([1.0, 4.0, 7.0]).view(1, 3, 1, 1), torch.ones(1, 2, 2, dtype=torch.long))
    # mean 4, deviation 3
    torch.testing.assert_close(memory.memory, torch.tensor([[0.0, 1.0], [0.4, 1.2]]))
    assert memory.seen.tolist() == [[False], [True]]


def test_draws_are_those_of_the_authors() -> None:
    memory = StatisticsMemory(CLASSES, CHANNELS)
    memory.memory.copy_(torch.rand(CLASSES, 2))
    state = torch.get_rng_state()
    draws = memory.representations()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws, memory.representations())
    assert draws.shape == (CLASSES, 1, CHANNELS)
    for k in range(CLASSES):
        torch.manual_seed(k)
        mean, std = (value.expand(1, CHANNELS) for value in memory.memory[k])
        torch.testing.assert_close(draws[k], torch.normal(mean, std), rtol=0, atol=1e-6)


def test_void_absent_and_infinite_change_nothing(labeled_features: Make) -> None:
    features, target = labeled_features((4, 4), (16, 16), num_classes=CLASSES, channels=CHANNELS)
    memory = StatisticsMemory(CLASSES, CHANNELS)
    memory.update(features, target.masked_fill(target == 1, 255))
    before = copy.deepcopy(memory.state_dict())
    assert before["memory"][1].tolist() == [0.0, 1.0]
    memory.update(features, torch.full_like(target, 255))
    memory.update(features / 0, target)
    memory.update(features, target, momentum=0)
    assert torch.equal(memory.memory, before["memory"])


def test_saved_and_restored_bit_by_bit(tmp_path: Path, labeled_features: Make) -> None:
    features, target = labeled_features((4, 4), (16, 16), num_classes=CLASSES, channels=CHANNELS)
    memory = StatisticsMemory(CLASSES, CHANNELS)
    memory.update(features, target)
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    restored = StatisticsMemory(CLASSES, CHANNELS)
    restored.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    assert set(memory.state_dict()) == {"memory", "seen"}
    assert torch.equal(restored.memory, memory.memory)
    assert torch.equal(restored.seen, memory.seen)
    assert torch.equal(restored.representations(), memory.representations())


def test_can_stand_where_a_feature_memory_stands(labeled_features: Make) -> None:
    features, target = labeled_features((4, 4), (16, 16), num_classes=CLASSES, channels=CHANNELS)
    for memory in (FeatureMemory(CLASSES, CHANNELS), StatisticsMemory(CLASSES, CHANNELS)):
        memory.update(features, target, momentum=0.5, strategy="mean", ignore_index=255)
        assert (memory.num_classes, memory.channels, memory.slots) == (CLASSES, CHANNELS, 1)
        assert memory.seen.shape == (CLASSES, 1)
        representations = memory.representations()
        assert (representations.shape, representations.dtype) == ((CLASSES, 1, CHANNELS), torch.float32)
        assert not representations.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, r"num_classes: expected a positive integer, got 0"),
        ({"channels": 1}, r"channels: expected a number at least 2, got 1"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StatisticsMemory(**{"num_classes": 2, "channels": 3, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"strategy": "cosine"},
            ValueError,
            r"strategy: expected 'mean', got 'cosine'; .* FeatureMemory offers 'cosine'",
        ),
        ({"momentum": math.nan}, ValueError, r"momentum: expected a number from 0 .* got nan"),
        ({"features": torch.ones(1, 2, 2, 2)}, ValueError, r"features: expected the shape \(N, 3, h, w\)"),
        ({"target": torch.zeros(1, 4, 4)}, TypeError, r"target: expected integer labels"),
        ({"target": torch.full((1, 4, 4), 7)}, ValueError, r"target: expected labels in 0 … 4 .* got the label 7"),
    ],
)
def test_wrong_updates_say_why_and_change_nothing(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    memory = StatisticsMemory(5, 3)
    batch = {"features": torch.ones(1, 3, 2, 2), "target": torch.zeros(1, 4, 4, dtype=torch.long)}
    with pytest.raises(error, match=message):
        memory.update(**{**batch, **arguments})
    assert not memory.seen.any()
    assert memory.memory.tolist() == [[0.0, 1.0]] * 5
