import pytest
import torch
from torch import nn

from beyondpixel.lightning_modules.networks import build_encoder
from beyondpixel.lightning_modules.networks.encoders import DILATABLE, resolve_encoder_name


@pytest.mark.parametrize(
    ("name", "resolved"),
    [
        ("resnet50", "resnet50"),
        ("tu-resnet50", "tu-resnet50"),
        ("resnet101s", "tu-resnet101s"),
        ("convnext_atto.d2_in1k", "tu-convnext_atto.d2_in1k"),
        ("efficientnet-b0", "efficientnet-b0"),
    ],
)
def test_names(name: str, resolved: str) -> None:
    assert resolve_encoder_name(name) == resolved


@pytest.mark.parametrize(("name", "close"), [("resnet5O", "resnet50"), ("tu-resnet101z", "resnet101")])
def test_unknown_names_get_the_closest(name: str, close: str) -> None:
    with pytest.raises(ValueError, match=f"unknown encoder '{name}'.*did you mean .*{close}"):
        build_encoder(name, output_stride=16)


def test_a_name_like_no_other_gets_examples() -> None:
    with pytest.raises(ValueError, match="for example resnet18"):
        build_encoder("@@@@", output_stride=16)


@pytest.mark.parametrize("name", ["vgg11", "tu-ghostnet_050", "tu-vit_tiny_patch16_224", "densenet121"])
def test_what_cannot_be_dilated_is_refused_with_names_that_can(name: str) -> None:
    with pytest.raises(ValueError, match=rf"encoder '{name}' cannot be dilated to output_stride=8 \(.+\); .*resnet50"):
        build_encoder(name, output_stride=8)


def test_output_stride_is_8_or_16() -> None:
    with pytest.raises(ValueError, match="output_stride must be 8 or 16, got 32"):
        build_encoder("resnet18", output_stride=32)


def _check(name: str, output_stride: int) -> None:
    encoder, _ = build_encoder(name, output_stride=output_stride)
    assert encoder.training
    with torch.no_grad():
        features = encoder.eval()(torch.zeros(1, 3, 128, 160))
    assert features[2].shape == (1, encoder.out_channels[2], 32, 40)
    assert features[-1].shape == (1, encoder.out_channels[-1], 128 // output_stride, 160 // output_stride)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_features_have_the_asked_stride(name: str, output_stride: int) -> None:
    _check(name, output_stride)


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [8, 16])
def test_all_named_as_dilatable_are(output_stride: int) -> None:
    for name in DILATABLE:
        _check(name, output_stride)


@pytest.mark.parametrize("name", [*DILATABLE, "timm-efficientnet-b0"])
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    """Otherwise DistributedDataParallel refuses the second step."""
    encoder, _ = build_encoder(name, output_stride=16)
    features = encoder.eval()(torch.zeros(1, 3, 64, 64))
    torch.stack([feature.sum() for feature in features]).sum().backward()
    assert not [key for key, weight in encoder.named_parameters() if weight.requires_grad and weight.grad is None]


def test_the_papers_backbone_has_the_deep_stem() -> None:
    encoder, _ = build_encoder("resnet101s", output_stride=16)
    stem = [layer for layer in encoder.model.conv1 if isinstance(layer, nn.Conv2d)]
    assert [(layer.kernel_size, layer.out_channels, layer.stride) for layer in stem] == [
        ((3, 3), 64, (2, 2)),
        ((3, 3), 64, (1, 1)),
        ((3, 3), 128, (1, 1)),
    ]
    assert [len(encoder.model[f"layer{stage}"]) for stage in (1, 2, 3, 4)] == [3, 4, 23, 3]


def test_probing_leaves_batch_norm_statistics_alone() -> None:
    encoder, _ = build_encoder("resnet18", output_stride=16)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == 0
            assert module.running_mean is not None
            assert not module.running_mean.any()


@pytest.mark.parametrize(("name", "dilations"), [("resnet18", [2, 2, 2, 2]), ("tu-resnet18", [1, 2, 2, 2])])
def test_the_last_stage_is_dilated_as_documented(name: str, dilations: list[int]) -> None:
    encoder, _ = build_encoder(name, output_stride=16)
    last = encoder.model["layer4"] if name.startswith("tu-") else encoder.layer4
    layers = [layer for block in last for layer in (block.conv1, block.conv2)]
    assert [layer.dilation[0] for layer in layers] == dilations
    assert {layer.stride for layer in layers} == {(1, 1)}


@pytest.mark.parametrize(
    "name", ["resnet18", "tu-resnet18", "mobilenet_v2", "efficientnet-b0", "tf_efficientnet_lite0"]
)
def test_without_dilation_the_last_stage_sees_its_neighbors_only(name: str) -> None:
    encoder, _ = build_encoder(name, output_stride=16, dilate_last_stage=False)
    assert {layer.dilation for layer in encoder.modules() if isinstance(layer, nn.Conv2d)} == {(1, 1)}
    with torch.no_grad():
        features = encoder.eval()(torch.zeros(1, 3, 128, 160))
    assert features[-1].shape[-2:] == features[-2].shape[-2:] == (8, 10)


def test_without_dilation_the_stages_before_are_the_same() -> None:
    torch.manual_seed(0)
    dilated, _ = build_encoder("tu-resnet18", output_stride=16)
    plain, _ = build_encoder("tu-resnet18", output_stride=16, dilate_last_stage=False)
    for layer in dilated.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)  # timm starts the last one of each block with zeros
    plain.load_state_dict(dilated.state_dict())
    images = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        ours, theirs = plain.eval()(images), dilated.eval()(images)
    assert all(torch.equal(mine, other) for mine, other in zip(ours[:-1], theirs[:-1], strict=True))
    assert not torch.allclose(ours[-1], theirs[-1])
