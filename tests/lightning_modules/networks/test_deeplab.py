from typing import Any

import pytest
import torch
from torch import nn

from beyondpixel.lightning_modules.networks import DeepLab

KINDS = [(decoder, variant) for decoder in ("paper", "smp") for variant in ("v3", "v3plus")]


@pytest.fixture(scope="module", params=KINDS, ids=" ".join)
def network(request: pytest.FixtureRequest) -> DeepLab:
    torch.manual_seed(0)
    decoder, variant = request.param
    return DeepLab(num_classes=3, decoder=decoder, variant=variant, encoder="resnet18").eval()


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (16, 32), (7, 100)])
def test_any_size_in_and_the_same_size_out(network: DeepLab, size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert network(torch.zeros(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [8, 16])
def test_the_papers_513(output_stride: int) -> None:
    network = DeepLab(num_classes=2, encoder="mobilenet_v2", output_stride=output_stride).eval()
    seen: list[torch.Size] = []
    network.classifier.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 513, 513)).shape == (1, 2, 513, 513)
    assert seen == [(1, 256, 129, 129)]  # not 130 or 132: no padding at this size


@pytest.mark.parametrize("encoder", ["tu-convnext_atto", "mobilenet_v2"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_other_encoders_and_strides(encoder: str, output_stride: int) -> None:
    network = DeepLab(num_classes=2, encoder=encoder, output_stride=output_stride).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 33, 47)).shape == (1, 2, 33, 47)


def test_logits_move_with_the_image(network: DeepLab) -> None:
    """Shifted by one stride, an image gives shifted logits, whatever the size: upsampling does not stretch."""
    # pooling to 1x1 sees the border move, so its branch is silenced
    for name, module in network.decoder.named_modules():
        if name in ("aspp.image.1", "aspp.convs.4.2", "aspp.0.convs.4.2"):
            nn.init.zeros_(module.weight)  # type: ignore[arg-type]
    image = torch.zeros(1, 3, 624, 624)
    image[..., 280:330, 290:340] = torch.randn(1, 3, 50, 50)
    with torch.no_grad():
        # ASPP and encoder look hundreds of pixels far; the patch and its view stay inside both crops
        logits = network(image)[..., 208:416, 208:416]
        moved = network(torch.roll(image, (16, 32), dims=(-2, -1))[..., :620, :613])[..., 224:432, 240:448]
    spread = logits.std()
    assert (logits - moved).abs().max() < 1e-3 * spread


def test_atrous_rates_follow_the_output_stride() -> None:
    def rates(network: DeepLab) -> list[int]:
        layers = [m for m in network.decoder.modules() if isinstance(m, nn.Conv2d) and m.dilation[0] > 1]
        return [layer.dilation[0] for layer in layers]

    assert rates(DeepLab(2, encoder="resnet18", output_stride=16)) == [6, 12, 18]
    assert rates(DeepLab(2, encoder="resnet18", output_stride=8)) == [12, 24, 36]
    assert rates(DeepLab(2, encoder="resnet18", variant="v3", atrous_rates=(2, 3, 4))) == [2, 3, 4]


@pytest.mark.parametrize(
    ("decoder", "variant", "dropouts"), [("smp", "v3plus", 1), ("paper", "v3", 1), ("paper", "v3plus", 2)]
)
def test_norm_momentum_and_dropout_reach_their_layers(decoder: Any, variant: Any, dropouts: int) -> None:
    network = DeepLab(2, encoder="resnet18", decoder=decoder, variant=variant, norm_momentum=0.05, dropout=0.3)
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.05}
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == dropouts * [0.3]


def test_decoder_and_classifier_begin_as_he_et_al() -> None:
    """Standard deviation sqrt(2 / fan-in), where fan-in and fan-out differ, and biases of 0."""
    torch.manual_seed(0)
    network = DeepLab(3, encoder="resnet18", decoder="paper", variant="v3")
    branch = network.decoder.aspp.branches[1][0].weight  # 3x3 from 512 channels to 256
    assert branch.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    assert network.classifier.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.1)
    assert not network.classifier.bias.any()


def test_papers_decoders_have_ordinary_convolutions() -> None:
    def count(network: DeepLab) -> int:
        return sum(parameter.numel() for parameter in network.decoder.parameters())

    # by hand: five branches of ASPP on 512 channels, their fusion, and 2 numbers a channel of each BatchNorm
    aspp = 256 * 512 * (1 + 3 * 9 + 1) + 256 * 5 * 256 + 6 * 2 * 256
    plus = 48 * 64 + 2 * 48 + 256 * 304 * 9 + 256 * 256 * 9 + 2 * 2 * 256
    assert count(DeepLab(2, encoder="resnet18", decoder="paper", variant="v3")) == aspp
    assert count(DeepLab(2, encoder="resnet18", decoder="paper", variant="v3plus")) == aspp + plus


@pytest.mark.parametrize("shape", [(3, 33, 47), (1, 1, 33, 47), (1, 4, 33, 47)])
def test_images_must_be_batches_of_three_channels(network: DeepLab, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\), got \(.*\); repeat the channel"):
        network(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder": "papers"}, "decoder: expected one of 'paper', 'smp', got 'papers'"),
        ({"dilate_last_stage": False, "output_stride": 8}, "dilate_last_stage must be true with output_stride=8"),
        ({"variant": "v2"}, "variant: expected one of 'v3', 'v3plus', got 'v2'"),
        ({"output_stride": 4}, "output_stride must be 8 or 16, got 4"),
        ({"atrous_rates": (6, 12)}, r"atrous_rates must be three numbers, got \[6, 12\]"),
        ({"norm_momentum": 0.0}, r"norm_momentum must be in \(0, 1\], got 0.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepLab(2, encoder="resnet18", **arguments)  # type: ignore[arg-type]
