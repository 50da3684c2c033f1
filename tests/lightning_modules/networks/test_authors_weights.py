"""The RMI authors' networks, against logits that their code gave."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beyondpixel.lightning_modules.networks import DeepLab, convert_authors_state_dict


def make_network(variant: Any, num_classes: int) -> DeepLab:
    return DeepLab(num_classes, variant=variant, encoder="resnet101s", decoder="paper", dilate_last_stage=False)


@pytest.mark.parametrize("case", [0, 1], ids=["v3", "v3plus"])
def test_the_authors_logits(shared: Path, case: int, rule_weights: Any) -> None:
    recorded = np.load(shared / "reference" / "deeplab_official.npz")
    settings = json.loads(bytes(recorded["meta"]))[case]
    network = make_network(settings["variant"], settings["classes"])
    assert sum(parameter.numel() for parameter in network.parameters()) == settings["parameters"]
    state = rule_weights(settings["seed"], settings["keys"])
    network.load_state_dict(convert_authors_state_dict(state, variant=settings["variant"]), strict=True)
    image, expected = (torch.from_numpy(recorded[f"{settings['id']}_{name}"]) for name in ("image", "logits"))
    with torch.no_grad():
        logits = network.eval()(image)
    assert (logits - expected).abs().max() <= 1e-5


def test_parameters_at_the_papers_size() -> None:
    counts = {
        variant: sum(parameter.numel() for parameter in make_network(variant, 21).parameters())
        for variant in ("v3", "v3plus")
    }
    assert {variant: round(count / 1e6, 2) for variant, count in counts.items()} == {"v3": 58.16, "v3plus": 59.47}


def test_names_of_data_parallel() -> None:
    state = {"module.backbone.conv1.0.weight": torch.zeros(1), "module.aspp.aspp2.bn.weight": torch.ones(1)}
    converted = convert_authors_state_dict(state, variant="v3plus")
    assert converted == {
        "encoder.model.conv1.0.weight": torch.zeros(1),
        "decoder.aspp.branches.1.1.weight": torch.ones(1),
    }


@pytest.mark.parametrize(
    ("name", "variant", "message"),
    [
        ("decoder.conv1.weight", "v3", "state has 'decoder.conv1.weight', which the authors' 'v3' does not"),
        ("optimizer", "v3plus", "state has 'optimizer'"),
        ("last_conv.bias", "v2", "variant: expected one of 'v3', 'v3plus', got 'v2'"),
    ],
)
def test_other_names_are_refused(name: str, variant: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_authors_state_dict({name: torch.zeros(1)}, variant=variant)
