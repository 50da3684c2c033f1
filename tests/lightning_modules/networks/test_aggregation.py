"""Aggregation and refinement, against the authors' arrays and against loops."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from beyondpixel.lightning_modules.networks import DatasetContext, SelfAttentionBlock, aggregate_representations
from beyondpixel.lightning_modules.networks.aggregation import FusedContexts

# the authors' names of weights and ours, in the order in which they are tried
RENAMED = [
    (r"^self_attention_ms\.", "fusion.attention."),
    (r"^self_attentions\.(\d+)\.", r"augment.refinements.\1."),
    (r"^self_attention\.", "augment.refinements.0."),
    (r"^bottleneck_ms\.", "fusion.fuse."),
    (r"^bottleneck\.", "augment.fuse."),
    (r"^fuse_memory_conv\.", "augment.fuse_slots."),
    (r"\b(query|key|value|out)_project\.", r"\1."),
]


def our_name(name: str) -> str:
    for theirs, ours in RENAMED:
        name = re.sub(theirs, ours, name)
    return name


@pytest.mark.parametrize("case", range(4))
def test_the_authors_forward(shared: Path, case: int) -> None:
    recorded = np.load(shared / "reference" / "mcibi_forward.npz")
    settings = json.loads(bytes(recorded["meta"]))[case]
    array = {
        name.removeprefix(f"{settings['id']}_"): torch.from_numpy(recorded[name])
        for name in recorded.files
        if name.startswith(f"{settings['id']}_")
    }
    channels, attention_channels = settings["C"], settings["transform"]
    parts = nn.ModuleDict(
        {"augment": DatasetContext(channels, attention_channels=attention_channels, slots=settings["slots"])}
    ).eval()
    if settings["context"]:
        parts["fusion"] = FusedContexts(channels, attention_channels).eval()
    weights = {our_name(name[2:]): value for name, value in array.items() if name.startswith("w/")}
    memory = weights.pop("memory")
    missing, unexpected = parts.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    seen = torch.ones(memory.shape[:2], dtype=torch.bool)
    coarse = aggregate_representations(array["class_logits"], memory, seen, hard=settings["hard"])
    with torch.no_grad():
        output = parts["augment"](array["features"], coarse)
        if settings["context"]:
            output = parts["fusion"](array["features"], array["context"], output)
    torch.testing.assert_close(output, array["output"], rtol=1e-5, atol=1e-5)


def loop_aggregation(logits: Tensor, memory: Tensor, seen: Tensor, hard: bool) -> Tensor:
    """Pixel by pixel and class by class, in float64."""
    N, K, H, W = logits.shape
    S, C = memory.shape[1:]
    coarse = torch.zeros(N, S, C, H, W, dtype=torch.float64)
    for n in range(N):
        for y in range(H):
            for x in range(W):
                for s in range(S):
                    known = [k for k in range(K) if seen[k, s]]
                    if not known:
                        continue
                    scores = {k: float(logits[n, k, y, x]) for k in known}
                    best = max(known, key=scores.__getitem__)
                    total = sum(math.exp(score) for score in scores.values())
                    for k in known:
                        weight = float(k == best) if hard else math.exp(scores[k]) / total
                        coarse[n, s, :, y, x] += weight * memory[k, s].double()
    return coarse


@pytest.mark.parametrize("hard", [False, True])
def test_aggregation_leaves_out_unseen_classes_of_each_slot(hard: bool) -> None:
    logits, memory = torch.randn(2, 4, 2, 3, dtype=torch.float64), torch.randn(4, 3, 5, dtype=torch.float64)
    # slot 0: all seen; slot 1: two of four; slot 2: none
    seen = torch.tensor([[True, False, False], [True, True, False], [True, False, False], [True, True, False]])
    memory[~seen] = 1e6  # must not matter
    coarse = aggregate_representations(logits, memory, seen, hard=hard)
    torch.testing.assert_close(coarse, loop_aggregation(logits, memory, seen, hard), rtol=1e-12, atol=1e-12)
    assert coarse[:, 2].abs().max() == 0


def test_gradients_reach_class_logits_through_soft_weights_only() -> None:
    logits, memory = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True), torch.randn(3, 2, 4).double()
    seen = torch.tensor([[True, True], [True, False], [False, False]])
    torch.autograd.gradcheck(lambda x: aggregate_representations(x, memory, seen), logits)
    (gradient,) = torch.autograd.grad(aggregate_representations(logits, memory, seen).square().sum(), logits)
    assert gradient[:, :2].abs().min() > 0
    assert gradient[:, 2].abs().max() == 0  # unseen in both slots
    assert not aggregate_representations(logits, memory, seen, hard=True).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_backward_reads_what_the_memory_became(dtype: torch.dtype) -> None:
    logits = torch.randn(1, 3, 2, 2, dtype=dtype, requires_grad=True)
    memory, seen = torch.randn(3, 2, 4, dtype=torch.float64), torch.ones(3, 2, dtype=torch.bool)
    old = memory.clone()
    mixed = aggregate_representations(logits, old, seen, backward_representations=memory)
    assert torch.equal(mixed, aggregate_representations(logits, old, seen))
    memory.mul_(-2)
    upstream = torch.randn_like(mixed)
    (gradient,) = torch.autograd.grad(mixed, logits, upstream)
    (expected,) = torch.autograd.grad(aggregate_representations(logits, memory, seen), logits, upstream)
    torch.testing.assert_close(gradient, expected)


def test_nothing_seen_gives_zero_and_finite_gradients() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    coarse = aggregate_representations(logits, torch.randn(3, 1, 4), torch.zeros(3, 1, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(coarse.sum(), logits)
    assert coarse.abs().max() == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_aggregation_in_half_precision(dtype: torch.dtype) -> None:
    logits, memory = torch.randn(1, 3, 2, 2), torch.randn(3, 1, 4)
    seen = torch.tensor([[True], [False], [True]])
    half = aggregate_representations(logits.to(dtype), memory, seen)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), aggregate_representations(logits, memory, seen), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("training", [False, True])
def test_attention_is_the_explicit_matrix(training: bool) -> None:
    block = SelfAttentionBlock(6, attention_channels=4).double().train(training)
    queries = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    source = torch.randn(2, 6, 2, 5, dtype=torch.float64, requires_grad=True)

    def explicit() -> Tensor:
        query, key, value = block.query(queries), block.key(source), block.value(source)
        scores = torch.einsum("ndyx,ndvu->nyxvu", query, key) / math.sqrt(4)
        weights = scores.flatten(3).softmax(dim=3).view_as(scores)
        return block.out(torch.einsum("nyxvu,ndvu->ndyx", weights, value))  # type: ignore[no-any-return]

    ours, theirs = block(queries, source), explicit()
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours.square().sum(), [queries, source]),
        torch.autograd.grad(theirs.square().sum(), [queries, source]),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_attention_of_no_image_is_empty() -> None:
    block = SelfAttentionBlock(6, attention_channels=4).eval()
    assert block(torch.zeros(0, 6, 3, 4), torch.zeros(0, 6, 2, 5)).shape == (0, 6, 3, 4)


class LargestTensor(TorchDispatchMode):
    """The number of elements in the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_never_holds_the_matrix(dtype: torch.dtype) -> None:
    """Neither forward nor backward makes a tensor that grows with the square of the positions."""
    block = SelfAttentionBlock(8, attention_channels=8).to(dtype)
    maps = torch.randn(1, 8, 40, 50, dtype=dtype, requires_grad=True)
    with LargestTensor() as largest:
        block(maps, maps).float().square().sum().backward()
    assert 8 * 2000 <= largest.elements <= 4 * 8 * 2000  # the matrix would have 2000 * 2000


def test_without_refinement_the_mix_itself_is_fused() -> None:
    augment = DatasetContext(4, attention_channels=2, refinement=False).eval()
    assert not [name for name, _ in augment.named_parameters() if "refine" in name]
    features, coarse = torch.randn(1, 4, 3, 3), torch.randn(1, 1, 4, 3, 3)
    expected = augment.fuse(torch.cat([features, coarse[:, 0]], dim=1))
    torch.testing.assert_close(augment(features, coarse), expected, rtol=0, atol=0)
