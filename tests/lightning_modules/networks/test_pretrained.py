import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torchvision.models import mobilenet_v2, resnet18

from beyondpixel.lightning_modules.networks import build_encoder, without_pretrained_weights


@pytest.fixture
def resnet_file(tmp_path: Path) -> Path:
    """What torchvision publishes, random: classifier included."""
    model = resnet18()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def _torchvision_features(model: Any, images: torch.Tensor) -> torch.Tensor:
    stem = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    features: torch.Tensor = model.layer3(model.layer2(model.layer1(stem)))
    return features


def test_torchvision_file_gives_torchvision_features(resnet_file: Path) -> None:
    encoder, _ = build_encoder("resnet18", output_stride=16, weights=str(resnet_file))
    model = resnet18()
    model.load_state_dict(torch.load(resnet_file, weights_only=True))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        # up to stride 16 nothing is dilated; after that the encoder must differ from a classifier
        ours, theirs = encoder.eval()(images)[4], _torchvision_features(model.eval(), images)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(encoder.layer4[1].conv2.weight, model.layer4[1].conv2.weight)


def test_dequantised_mobilenet(shared: Path) -> None:
    path = shared / "data" / "weights" / "mobilenet_v2_imagenet_dequantised.pth"
    encoder, _ = build_encoder("mobilenet_v2", output_stride=16, weights=str(path))
    model = mobilenet_v2()
    model.load_state_dict(torch.load(path, weights_only=True))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = encoder.eval()(images)
        for feature, layers in ((features[2], 4), (features[3], 7), (features[4], 14)):
            torch.testing.assert_close(feature, model.eval().features[:layers](images))
    # the last stages hold the file's weights, too; only their dilation differs
    for ours, theirs in zip(encoder.features.parameters(), model.features.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["convnext_atto", "regnetx_002"])
def test_timm_file_gives_timm_features(name: str, tmp_path: Path) -> None:
    model = timm.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    encoder, _ = build_encoder(name, output_stride=16, weights=str(tmp_path / "weights.pth"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        theirs = model.forward_intermediates(images, intermediates_only=True)
        ours = encoder.eval()(images)
    stride_8 = next(feature for feature in theirs if feature.shape[-1] == 8)
    torch.testing.assert_close(ours[3], stride_8)


def test_safetensors(resnet_file: Path) -> None:
    from safetensors.torch import save_file

    state = torch.load(resnet_file, weights_only=True)
    save_file(state, resnet_file.with_suffix(".safetensors"))
    encoder, _ = build_encoder("resnet18", output_stride=16, weights=str(resnet_file.with_suffix(".safetensors")))
    torch.testing.assert_close(encoder.conv1.weight, state["conv1.weight"])


def test_keys_that_do_not_fit_are_listed(resnet_file: Path) -> None:
    state = torch.load(resnet_file, weights_only=True)
    del state["layer1.0.conv1.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["bn1.weight"] = torch.zeros(7)
    torch.save(state, resnet_file)
    expected = (
        r"does not fit the encoder 'resnet18': keys 1 missing: layer1.0.conv1.weight; "
        r"1 unexpected: extra.weight; 1 of another shape: bn1.weight \(7,\) instead of \(64,\)"
    )
    with pytest.raises(ValueError, match=expected):
        build_encoder("resnet18", output_stride=16, weights=str(resnet_file))


def test_another_architecture_is_refused(resnet_file: Path) -> None:
    with pytest.raises(ValueError, match=r"does not fit the encoder 'resnet50': keys \d+ missing: .*another arch"):
        build_encoder("resnet50", output_stride=16, weights=str(resnet_file))


def test_a_training_checkpoint_is_not_taken_for_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "last.pth")
    with pytest.raises(ValueError, match="is not a plain state dict"):
        build_encoder("resnet18", output_stride=16, weights=str(tmp_path / "last.pth"))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"encoder_weights='nowhere/resnet18.pth': there is no such file"):
        build_encoder("resnet18", output_stride=16, weights="nowhere/resnet18.pth")


@pytest.mark.parametrize(
    ("name", "offered"),
    [("resnet18", "offered are imagenet, ssl, swsl,"), ("tu-resnet101s", "offered are imagenet, gluon_in1k,")],
)
def test_unknown_weights_get_the_valid_names(name: str, offered: str) -> None:
    with pytest.raises(ValueError, match=f"unknown encoder_weights='imagenett'.*{offered}"):
        build_encoder(name, output_stride=16, weights="imagenett")


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet18"])
def test_without_a_network_the_error_says_what_to_do(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # without this its client retries for long
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        ConnectionError, match=r"could not be fetched \(.*local weights file.*null to train from scratch"
    ):
        build_encoder(name, output_stride=16, weights="imagenet")


def test_weights_can_be_skipped() -> None:
    with without_pretrained_weights():
        build_encoder("resnet18", output_stride=16, weights="gone.pth")
    with pytest.raises(FileNotFoundError):
        build_encoder("resnet18", output_stride=16, weights="gone.pth")
