import pytest
import torch
from torch import nn

from beyondpixel.lightning_modules.networks import DeepLab


@pytest.fixture(scope="module", params=["v3", "v3plus"])
def network(request: pytest.FixtureRequest) -> DeepLab:
    torch.manual_seed(0)
    return DeepLab(num_classes=3, variant=request.param, encoder="resnet18").eval()


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
    aspp = network.decoder.aspp if network.variant == "v3" else network.decoder.aspp[0]
    pooled = aspp.convs[-1]
    nn.init.zeros_(pooled[2].weight)
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


def test_norm_momentum_and_dropout_reach_their_layers() -> None:
    network = DeepLab(2, encoder="resnet18", norm_momentum=0.05, dropout=0.3)
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.05}
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.3]


@pytest.mark.parametrize("shape", [(3, 33, 47), (1, 1, 33, 47), (1, 4, 33, 47)])
def test_images_must_be_batches_of_three_channels(network: DeepLab, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\), got \(.*\); repeat the channel"):
        network(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "v2"}, "variant must be 'v3' or 'v3plus', got 'v2'"),
        ({"output_stride": 4}, "output_stride must be 8 or 16, got 4"),
        ({"atrous_rates": (6, 12)}, r"atrous_rates must be three numbers, got \[6, 12\]"),
        ({"norm_momentum": 0.0}, r"norm_momentum must be in \(0, 1\], got 0.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepLab(2, encoder="resnet18", **arguments)  # type: ignore[arg-type]
