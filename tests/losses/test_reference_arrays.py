"""Values and gradients that the published implementations gave, recorded on a CPU."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beyondpixel.losses import AffinityFieldLoss, BinaryCrossEntropyLoss, RMILoss, SegmentationLoss

OFFICIAL = [f"rmi_official-{case}" for case in range(12)]
RELBERS = [f"rmi_relbers-{case}" for case in range(6)]
AFFINITY = [f"affinity_official-{case}" for case in range(3)]
BCE = [f"bce_official-{case}" for case in range(2)]


def loss_of(case: dict[str, Any], **backend: str) -> SegmentationLoss:
    num_classes = case["shape"][1]
    if case["source"] == "official-bce":
        return BinaryCrossEntropyLoss(num_classes)
    if case["source"] == "official-aaf":
        loss = AffinityFieldLoss(num_classes)
        loss.progress = case["step"] / case["max_iter"]
        return loss
    if case["source"] == "official":
        return RMILoss(
            num_classes,
            region_size=case["R"],
            downsampling_factor=case["df"],
            pooling=case["pooling"],
            pixel_weight=case["lam"],
            **backend,
        )
    return RMILoss(
        num_classes,
        region_size=case["R"],
        downsampling_factor=case["stride"],
        pooling="stride" if case["pooling"] == "region-extraction" else case["pooling"],
        pixel_weight=case["bce_weight"],
        pixel_loss="bce_mean",
        with_logits=case["with_logits"],
        ridge=case["epsilon"],
        **backend,
    )


@pytest.mark.parametrize("name", BCE + AFFINITY)
def test_value_and_gradient_are_the_published_codes(shared: Path, name: str) -> None:
    check(shared, name)


@pytest.mark.parametrize("backend", ["plain", "c"])
@pytest.mark.parametrize("name", OFFICIAL + RELBERS)
def test_every_backend_gives_the_published_rmi(shared: Path, name: str, backend: str) -> None:
    check(shared, name, backend=backend)


def check(shared: Path, name: str, **backend: str) -> None:
    file, number = name.split("-")
    arrays = np.load(shared / "reference" / f"{file}.npz")
    case = json.loads(bytes(arrays["meta"]))[int(number)]
    get = {key.split("_", 1)[1]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith(f"{number}_")}
    scores = get.get("logits", get.get("input")).requires_grad_()
    loss = loss_of(case, **backend)(scores, get.get("labels", get.get("target")))
    loss.backward()
    assert loss.item() == pytest.approx(get["loss"].item(), rel=1e-5)
    assert (scores.grad - get["grad"]).norm() <= 1e-5 * get["grad"].norm()
