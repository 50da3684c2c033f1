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


@pytest.mark.parametrize("context", ["aspp", "upernet"])
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
    plain = {name for name, _ in make(memory=None, context="aspp").named_children()}
    assert plain == {"encoder", "context", "auxiliary_head", "head"}
    assert {name for name, _ in make(memory=None, context="aspp", auxiliary=False).named_children()} == {
        "encoder",
        "context",
        "head",
    }
    assert "auxiliary_head" in dict(make(memory=None, context="ocr", auxiliary=False).named_children())


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
    assert [branch[0].dilation for branch in module.atrous] == [(3, 3)]
    seen: list[torch.Tensor] = []
    module.fuse.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for branch in (module.atrous[0], module.image):
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
    module = ObjectContext(4, attention_channels=2).eval()
    seen: list[torch.Tensor] = []
    module.attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    features, logits = torch.randn(2, 4, 2, 3), torch.randn(2, 5, 2, 3)
    module(features, logits)
    for n in range(2):
        for k in range(5):
            weights = logits[n, k].exp() / logits[n, k].exp().sum()
            torch.testing.assert_close(seen[0][n, :, k, 0], (weights * features[n]).sum((1, 2)))


def test_upernet_puts_the_fused_context_on_top_of_the_pyramid() -> None:
    network = make(context="upernet").eval()
    tops: list[torch.Tensor] = []
    fused: list[torch.Tensor] = []
    network.pyramid.register_forward_pre_hook(lambda _, inputs: tops.append(inputs[1]))
    network.dataset_context.register_forward_hook(lambda _, __, output: fused.append(output))
    sizes: list[torch.Size] = []
    network.head.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    with torch.no_grad():
        network(torch.randn(1, 3, 65, 65))
    assert torch.equal(tops[0], fused[0])
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


@pytest.mark.parametrize("shape", [(3, 33, 47), (1, 1, 33, 47)])
def test_images_must_be_batches_of_three_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\), got \(.*\); repeat the channel"):
        make()(torch.zeros(shape))
