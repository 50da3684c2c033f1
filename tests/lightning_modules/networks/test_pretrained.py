import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torchvision.models import mobilenet_v2, resnet18

from beyondpixel.lightning_modules.networks import (
    MCIBI,
    DeepLab,
    build_encoder,
    pretrained,
    without_pretrained_weights,
)


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


@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        (DeepLab, {}),
        *((MCIBI, {"memory": memory, "channels": 12}) for memory in (None, "features", "statistics")),
    ],
)
def test_initialization_of_the_heads_leaves_the_files_weights(
    resnet_file: Path, network: Any, arguments: dict[str, Any]
) -> None:
    state = torch.load(resnet_file, weights_only=True)
    made = network(3, encoder="resnet18", encoder_weights=str(resnet_file), **arguments).encoder.state_dict()
    assert set(made) == {name for name in state if not name.startswith("fc.")}
    for name, value in made.items():
        assert torch.equal(value, state[name]), name


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
def test_a_hub_that_does_not_answer_is_asked_once(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The hub's own client would connect to it ten times, with pauses, for each of two files."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(pretrained.time, "monotonic", lambda: 0.0)  # no new minute begins
        monkeypatch.setattr(pretrained, "_PROBE_SECONDS", 0.2)
        monkeypatch.setattr(pretrained, "_failures", {})
        pretrained.hub_is_reachable.cache_clear()
        message = r"could not be fetched \(.*\).*encoder_weights FILE.*HF_HOME.*HF_HUB_OFFLINE.*encoder_weights null"
        for _ in range(3):
            with pytest.raises(ConnectionError, match=message):
                build_encoder(name, output_stride=16, weights="imagenet")
        silent.settimeout(0.2)
        silent.accept()[0].close()
        with pytest.raises(TimeoutError):
            silent.accept()
    pretrained.hub_is_reachable.cache_clear()
    assert "etry" not in "".join(capfd.readouterr())


def test_a_hub_that_answers_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        pretrained.hub_is_reachable.cache_clear()
        assert pretrained.hub_is_reachable(0)
    pretrained.hub_is_reachable.cache_clear()


LITE = ["tf_efficientnet_lite0", "tf_efficientnet_lite2"]


@pytest.mark.parametrize("name", LITE)
def test_the_file_of_efficientnet_lite_is_loaded_in_full(shared: Path, name: str) -> None:
    path = shared / "data" / "weights" / f"{name}_imagenet.safetensors"
    published = {key: value.float() for key, value in load_file(path).items()}
    encoder, grid = build_encoder(name, output_stride=16, weights=str(path))
    assert (grid.stride, grid.align_corners) == (16, True)
    state = {key.removeprefix("model."): value for key, value in encoder.state_dict().items()}
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, published[key]), key
    # what the encoder has not is what comes after its last map
    assert {key.split(".")[0] for key in set(published) - set(state)} <= {"conv_head", "bn2", "classifier"}

    # up to stride 16 the encoder is timm's own network on any image, and finite after that
    model = timm.create_model(name).eval()
    model.load_state_dict(published)
    images = torch.rand(2, 3, 97, 129) * 2 - 1
    with torch.no_grad():
        ours = encoder.eval()(images)
        theirs = model.forward_intermediates(images, intermediates_only=True)
    for mine, other in zip(ours[1:5], theirs[:4], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    assert ours[5].shape[-2:] == (7, 9)
    assert 0.1 < ours[5].std() < 10


@pytest.mark.parametrize("decoder", ["paper", "smp"])
@pytest.mark.parametrize(
    "file", ["mobilenet_v2_imagenet_dequantised.pth", *(f"{n}_imagenet.safetensors" for n in LITE)]
)
def test_deeplab_on_real_weights(shared: Path, decoder: Any, file: str) -> None:
    encoder = file.partition("_imagenet")[0]
    network = DeepLab(3, encoder=encoder, encoder_weights=str(shared / "data" / "weights" / file), decoder=decoder)
    with torch.no_grad():
        logits = network.eval()(torch.randn(1, 3, 50, 70))
    assert logits.shape == (1, 3, 50, 70)
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_weights_can_be_skipped() -> None:
    with without_pretrained_weights():
        build_encoder("resnet18", output_stride=16, weights="gone.pth")
    with pytest.raises(FileNotFoundError):
        build_encoder("resnet18", output_stride=16, weights="gone.pth")
