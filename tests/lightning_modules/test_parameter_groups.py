import pytest
import torch
from torch import nn

from beyondpixel.lightning_modules.networks import DeepLab
from beyondpixel.lightning_modules.parameter_groups import parameter_groups


@pytest.fixture(scope="module")
def network() -> DeepLab:
    return DeepLab(num_classes=4, encoder="resnet18")


def test_every_trainable_parameter_is_in_exactly_one_group(network: DeepLab) -> None:
    groups = parameter_groups(network)
    assert {group["lr"] for group in groups} == {1}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in network.parameters()}


def test_groups_follow_the_authors_rule(network: DeepLab) -> None:
    groups = parameter_groups(network, head_lr_multiplier=10)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("encoder/decay", 1, 1),
        ("encoder/no_decay", 1, 0),
        ("head/decay", 10, 1),
        ("head/no_decay", 10, 0),
    ]
    # in this network exactly the convolutions' weights have four axes; BatchNorm's and biases have one
    for group in groups:
        axes = {parameter.ndim for parameter in group["params"]}
        assert axes == ({4} if group["weight_decay"] else {1}), group["name"]
    by_name = dict(network.named_parameters())
    placed = {id(parameter): group["name"] for group in groups for parameter in group["params"]}
    assert placed[id(by_name["encoder.conv1.weight"])] == "encoder/decay"
    assert placed[id(by_name["encoder.bn1.weight"])] == "encoder/no_decay"
    assert placed[id(by_name["classifier.weight"])] == "head/decay"
    assert placed[id(by_name["classifier.bias"])] == "head/no_decay"


def test_all_parameters_decay_if_asked(network: DeepLab) -> None:
    groups = parameter_groups(network, head_lr_multiplier=10, decay_norm_and_bias=True)
    assert [(group["name"], group["weight_decay"]) for group in groups] == [("encoder/decay", 1), ("head/decay", 1)]
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in network.parameters()}


def test_frozen_parameters_are_left_out_and_shared_ones_counted_once() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    first.bias.requires_grad_(False)
    (group,) = parameter_groups(nn.Sequential(first, second), head_lr_multiplier=10)
    assert (group["name"], group["lr"]) == ("network/decay", 1)
    assert [id(parameter) for parameter in group["params"]] == [id(first.weight)]


def test_layers_that_are_neither_convolution_nor_linear_do_not_decay() -> None:
    network = nn.Sequential(nn.Embedding(4, 2), nn.LayerNorm(2), nn.ConvTranspose2d(2, 2, 2))
    groups = {group["name"]: group["params"] for group in parameter_groups(network)}
    assert [id(p) for p in groups["network/decay"]] == [id(network[2].weight)]
    assert len(groups["network/no_decay"]) == 4


def test_a_loss_with_parameters_trains_at_the_base_rate_without_decay() -> None:
    network = nn.ModuleDict({"encoder": nn.Conv2d(3, 4, 1), "head": nn.Conv2d(4, 2, 1)})
    own = nn.Parameter(torch.zeros(2, 3))
    loss = nn.ParameterList([own, network["head"].weight])  # which the network trains already
    groups = parameter_groups(network, head_lr_multiplier=10, loss=loss)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups][-1] == ("loss", 1, 0)
    assert [id(parameter) for parameter in groups[-1]["params"]] == [id(own)]
