"""The network behind MCIBIModule, without Lightning."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from beyondpixel.lightning_modules.networks import (
    ASPP,
    MCIBI,
    ClassificationHead,
    ObjectContext,
    PyramidPooling,
)


def make(**arguments: Any) -> Any:
    small = {"encoder": "resnet18", "output_stride": 16, "channels": 12, "attention_channels": 6}
    return MCIBI(num_classes=3, **{**small, **arguments})


@pytest.mark.parametrize("context", ["aspp", "upernet", "upernet_aspp"])
@pytest.mark.parametrize("size", [(33, 47), (1, 1), (16, 32), (7, 100)])
def test_any_size_in_and_the_same_size_out(context: str, size: tuple[int, int]) -> None:
    network = make(context=context).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("encoder", ["tu-convnext_atto", "mobilenet_v2"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_other_encoders_and_strides(encoder: str, output_stride: int) -> None:
    network = make(encoder=encoder, output_stride=output_stride, context="upernet", memory=None)
    outputs = network.outputs(torch.zeros(2, 3, 33, 47))
    assert outputs.logits.shape == outputs.intermediate["auxiliary"].shape == (2, 3, 33, 47)


def test_representations_lie_at_the_output_stride() -> None:
    outputs = make(output_stride=8, context="none").eval().outputs(torch.zeros(1, 3, 129, 129))
    assert outputs.features.shape == (1, 12, 17, 17)


def test_without_a_memory_there_is_none_of_its_parts() -> None:
    def parts(**arguments: Any) -> set[str]:
        return {name for name, _ in make(memory=None, **arguments).named_children()}

    assert parts(context="aspp") == {"encoder", "context", "auxiliary_head", "head"}
    assert parts(context="aspp", auxiliary=False) == {"encoder", "context", "head"}
    assert parts(context="upernet", auxiliary=False) == {"encoder", "context", "pyramid", "head"}
    outputs = make(memory=None, context="ocr", auxiliary=False).outputs(torch.zeros(2, 3, 33, 33))
    assert set(outputs.intermediate) == {"auxiliary"}  # of the object regions


@pytest.mark.parametrize(
    ("memory", "counts"),
    [
        # without the encoder, at the papers' widths on a ResNet-50 or -101 with 21 classes: the authors' own code
        ("features", {"none": 20_095_039, "ppm": 48_547_391, "aspp": 67_684_927}),
        ("statistics", {"aspp": 67_036_756}),
    ],
)
def test_parameters_at_the_papers_size(memory: Any, counts: dict[Any, int], fake_encoder: Any) -> None:
    fake_encoder([3, 128, 256, 512, 1024, 2048])
    for context, count in counts.items():
        network = MCIBI(21, context=context, memory=memory)
        assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_nothing_is_supervised_in_evaluation() -> None:
    for context in ("ocr", "aspp"):
        outputs = make(context=context, memory="statistics").eval().outputs(torch.zeros(1, 3, 33, 33))
        assert outputs.intermediate == {}


def test_atrous_rates_follow_the_output_stride() -> None:
    def rates(network: nn.Module) -> list[int]:
        return [m.dilation[0] for m in network.context.modules() if isinstance(m, nn.Conv2d) and m.dilation[0] > 1]

    assert rates(make(context="aspp")) == [6, 12, 18]
    assert rates(make(context="aspp", output_stride=8)) == [12, 24, 36]
    assert rates(make(context="aspp", atrous_rates=(2, 3))) == [2, 3]


@pytest.mark.parametrize("memory", [None, "features", "statistics"])
def test_norm_momentum_and_dropout_reach_all_layers(memory: Any) -> None:
    network = make(memory=memory, context="upernet", norm_momentum=0.05, dropout=0.3)
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.05}
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout2d)} == {0.3}
    assert {m.momentum for m in make(memory=memory).modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_pyramid_pooling_by_hand() -> None:
    """With identities for convolutions, each level is the map of its bins' means."""
    module = PyramidPooling(2, channels=2, bins=(1, 2)).eval()
    for level in module.levels:
        level[0].weight.data = torch.eye(2)[:, :, None, None]
    seen: list[torch.Tensor] = []
    module.fuse.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    maps = torch.rand(1, 2, 4, 6)
    module(maps)
    scale = 1 / (1 + 1e-5) ** 0.5  # BatchNorm with its initial statistics
    torch.testing.assert_close(seen[0][:, :2], maps)
    torch.testing.assert_close(seen[0][:, 2:4], maps.mean((2, 3), keepdim=True).expand_as(maps) * scale)
    quarters = maps.reshape(1, 2, 2, 2, 2, 3).mean((3, 5))
    # the middle of each 2x3 bin's outermost pixels lies outside the bins' centres, where the value is the bin's
    torch.testing.assert_close(seen[0][:, 4:, 0, 0], quarters[..., 0, 0] * scale)
    torch.testing.assert_close(seen[0][:, 4:, 3, 5], quarters[..., 1, 1] * scale)


def test_aspp_sees_the_rate_and_the_image() -> None:
    module = ASPP(1, channels=1, rates=(3,)).eval()
    assert [branch[0].dilation for branch in module.branches] == [(1, 1), (3, 3)]
    seen: list[torch.Tensor] = []
    module.fuse.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for branch in (module.branches[1], module.image):
        nn.init.ones_(branch[0].weight)
    maps = torch.zeros(1, 1, 9, 9)
    maps[0, 0, 4, 4] = 1.0
    module(maps)
    scale = 1 / (1 + 1e-5) ** 0.5
    reached = torch.zeros(9, 9)
    reached[1:8:3, 1:8:3] = scale
    torch.testing.assert_close(seen[0][0, 1], reached)
    torch.testing.assert_close(seen[0][0, 2], torch.full((9, 9), scale / 81))


def test_object_regions_by_hand() -> None:
    region_head = ClassificationHead(6, 4, num_classes=5)
    module = ObjectContext(8, channels=4, attention_channels=2, region_head=region_head).eval()
    seen: list[torch.Tensor] = []
    module.attention.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    _, supervised = module([torch.randn(2, 6, 2, 3), torch.randn(2, 8, 2, 3)])
    (features, regions), logits = seen, supervised["auxiliary"]
    for n in range(2):
        for k in range(5):
            weights = logits[n, k].exp() / logits[n, k].exp().sum()
            torch.testing.assert_close(regions[n, :, k, 0], (weights * features[n]).sum((1, 2)))


@pytest.mark.parametrize(("memory", "width"), [("features", 12), ("statistics", 24)])
def test_upernet_puts_the_fused_context_on_top_of_the_pyramid(memory: str, width: int) -> None:
    network = make(context="upernet", memory=memory).eval()
    tops: list[torch.Tensor] = []
    fused: list[torch.Tensor] = []
    network.pyramid.register_forward_pre_hook(lambda _, inputs: tops.append(inputs[1]))
    if memory == "features":
        network.fusion.register_forward_hook(lambda _, __, output: fused.append(output))
    else:  # the image's own context beside the augmented representations
        network.context.register_forward_hook(lambda _, __, output: fused.append(output[0]))
        network.dataset_context.register_forward_hook(
            lambda _, __, augmented: fused.insert(0, torch.cat([augmented, fused[0]], dim=1))
        )
    sizes: list[torch.Size] = []
    network.head.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    with torch.no_grad():
        network(torch.randn(1, 3, 65, 65))
    assert torch.equal(tops[0], fused[0])
    assert tops[0].shape == (1, width, 5, 5)
    assert sizes == [(1, 12, 17, 17)]  # stride 4


def test_head_of_vectors_is_the_head_in_evaluation() -> None:
    head = ClassificationHead(6, 4, num_classes=3, dropout=0.5)
    head.norm.running_mean.uniform_(-1, 1)
    head.norm.running_var.uniform_(0.5, 2)
    vectors = torch.randn(5, 6)
    expected = head.eval()(vectors[:, :, None, None]).flatten(1)
    torch.testing.assert_close(head.train().classify_vectors(vectors), expected)


def test_hard_aggregation_takes_one_class() -> None:
    soft, hard = make(context="none").eval(), make(context="none", aggregation="hard").eval()
    soft.memory.memory.copy_(torch.randn(3, 1, 12))
    soft.memory.seen.fill_(True)
    hard.load_state_dict(soft.state_dict())
    mixes: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    hard.dataset_context.register_forward_pre_hook(lambda _, inputs: mixes.append(inputs[1]))
    hard.class_head.register_forward_hook(lambda _, __, output: logits.append(output))
    images = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        assert not torch.allclose(hard(images), soft(images))
    torch.testing.assert_close(mixes[0][:, 0], F.embedding(logits[0].argmax(1), soft.memory.memory[:, 0]).movedim(3, 1))


def test_updated_memory_in_the_gradient() -> None:
    """With memory_gradient="updated", what backward finds of M is what the update wrote; forward stays the same."""
    images, target = torch.randn(2, 3, 33, 49), torch.randint(3, (2, 33, 49))
    start = make(context="none", dropout=0.0)
    start.memory.memory.copy_(torch.randn(3, 1, 12))
    start.memory.seen.fill_(True)

    def step(**arguments: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        network = make(context="none", dropout=0.0, **arguments)
        network.load_state_dict(start.state_dict())
        outputs = network.outputs(images)
        labels = network.grid.pad_target(target, ignore_index=255)
        network.memory.update(outputs.features.detach(), labels, momentum=0.9)
        F.cross_entropy(outputs.logits, target).backward()
        return network.memory.memory, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    read_memory, read = step()
    updated_memory, updated = step(memory_gradient="updated")
    torch.testing.assert_close(read_memory, updated_memory, rtol=0, atol=0)

    # the same by autograd alone: the value of W M_old with the derivative of W M_new
    network = make(context="none", dropout=0.0)
    network.load_state_dict(start.state_dict())
    features = network.context(network.encoder(network.grid.pad(images)))[0]
    weights = network.class_head(features).softmax(1)
    old, new = start.memory.memory[:, 0], updated_memory[:, 0]
    mixed = torch.einsum("nkhw,kc->nchw", weights, new)
    mixed = mixed + (torch.einsum("nkhw,kc->nchw", weights, old) - mixed).detach()
    logits = network.head(network.dataset_context(features, mixed[:, None]))
    F.cross_entropy(network.grid.upsample(logits, (33, 49)), target).backward()
    for name in ("class_head.conv.weight", "context.block.0.weight", "encoder.layer4.0.conv1.weight"):
        expected = network.get_parameter(name).grad
        torch.testing.assert_close(updated[name], expected, rtol=1e-4, atol=1e-6)
    difference = (updated["class_head.conv.weight"] - read["class_head.conv.weight"]).norm()
    assert difference > 0.05 * read["class_head.conv.weight"].norm()


@pytest.mark.parametrize("shape", [(3, 33, 47), (1, 1, 33, 47)])
def test_images_must_be_batches_of_three_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\), got \(.*\); repeat the channel"):
        make()(torch.zeros(shape))
