"""MCIBI++ against logits of the authors' code, wired as their published configurations."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from beyondpixel.lightning_modules.networks import MCIBI

# the authors' names and ours, in the order in which they are replaced
RENAMED = [
    (r"^auxiliary_decoder\.0\.", "auxiliary_head.conv."),
    (r"^auxiliary_decoder\.1\.", "auxiliary_head.norm."),
    (r"^auxiliary_decoder\.4\.", "auxiliary_head.classifier."),
    (r"^bottleneck\.", "representation."),
    (r"^context_within_image_module\.branches\.(\d)\.1\.", r"context.block.levels.\1.0."),
    (r"^context_within_image_module\.branches\.(\d)\.2\.", r"context.block.levels.\1.1."),
    (r"^context_within_image_module\.parallel_branches\.", "context.block.branches."),
    (r"^context_within_image_module\.global_branch\.1\.", "context.block.image.0."),
    (r"^context_within_image_module\.global_branch\.2\.", "context.block.image.1."),
    (r"^context_within_image_module\.bottleneck\.", "context.block.fuse."),
    (r"^decoder_pr\.", "class_head."),
    (r"^decoder_cwi\.", "context_head."),
    (r"^decoder_cls\.", "head."),
    (r"head\.conv1\.", "head.conv."),
    (r"head\.bn1\.", "head.norm."),
    (r"head\.conv2\.", "head.classifier."),
    (r"^memory_module\.bottleneck\.", "dataset_context.fuse."),
    (r"^memory_module\.self_attention\.", "dataset_context.refinements.0."),
    (r"(query|key|value|out)_project\.", r"\1."),
    (r"^memory_module\.memory$", "memory.memory"),
    (r"^lateral_convs\.", "pyramid.lateral."),
    (r"^fpn_convs\.", "pyramid.smooth."),
]
# with a pyramid, its last convolution is the first one of the head
RENAMED_WITH_PYRAMID = [
    (r"^head\.conv\.", "pyramid.fuse.0."),
    (r"^head\.norm\.", "pyramid.fuse.1."),
    (r"^head\.classifier\.", "head.1."),
]


def statistics(seed: int, keys: list[Any], num_classes: int) -> Tensor:
    (index,) = [index for index, name, _ in keys if name == "memory_module.memory"]
    random = np.random.default_rng([seed, index])
    mean, std = 0.3 * random.standard_normal(num_classes), 0.5 + random.random(num_classes)
    return torch.from_numpy(np.stack([mean, std], axis=1).astype(np.float32))


@pytest.mark.parametrize("case", range(3), ids=["aspp", "ppm", "upernet"])
def test_the_authors_logits(shared: Path, case: int, rule_weights: Any, fake_encoder: Any) -> None:
    recorded = np.load(shared / "reference" / "mcibipp_forward.npz")
    settings = json.loads(bytes(recorded["meta"]))[case]
    pyramid = settings["context"] == "upernet"
    maps = [torch.from_numpy(recorded[f"{settings['id']}_features{level}"]) for level in range(4)]
    before = torch.empty(0)  # the maps at strides 1 and 2, which nothing reads
    fake_encoder([3, 8, *(features.shape[1] for features in maps)])
    network = MCIBI(
        settings["classes"],
        context="upernet_aspp" if pyramid else settings["context"],
        memory="statistics",
        channels=settings["channels"],
        attention_channels=settings["attention_channels"],
    ).eval()

    state = {"memory.seen": torch.ones(settings["classes"], 1, dtype=torch.bool)}
    for name, value in rule_weights(settings["seed"], settings["keys"]).items():
        renamed = name
        for theirs, ours in RENAMED + (RENAMED_WITH_PYRAMID if pyramid else []):
            renamed = re.sub(theirs, ours, renamed)
        state[renamed] = value
    state["memory.memory"] = statistics(settings["seed"], settings["keys"], settings["classes"])
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        logits = network.decode([before, before, *maps]).logits
    expected = torch.from_numpy(recorded[f"{settings['id']}_logits"])
    assert (logits - expected).abs().max() <= 1e-5
