"""Parameter groups: learning rate and weight decay of encoder, head, norm layers and biases."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

_DECAYED = (_ConvNd, nn.Linear)


def parameter_groups(
    network: nn.Module,
    *,
    head_lr_multiplier: float = 1.0,
    decay_norm_and_bias: bool = False,
    loss: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Split trainable parameters into encoder and head, each with and without weight decay.

    Weight decay applies to the weights of convolutions and linear layers only, not to norm layers, biases and
    everything else (the RMI authors' rule; Zhao et al., NeurIPS 2019, published code). With `decay_norm_and_bias` it
    applies to all parameters (the MCIBI authors' rule; Jin et al., ICCV 2021, published code). Everything outside the
    network's submodule `encoder` is the head, with a learning rate `head_lr_multiplier` times higher. Each group has a
    `name`, which `LearningRateMonitor` includes in the logged key.

    Args:
        network: the module to train; without a submodule `encoder` all groups are `network/…`, with one learning rate.
        head_lr_multiplier: ratio of the head's learning rate to the encoder's.
        decay_norm_and_bias: whether to apply weight decay to norm layers and biases as well.
        loss: a loss with trainable parameters; they get the encoder's learning rate, without weight decay.

    Returns:
        Non-empty groups: `name`, `params`, and `lr` and `weight_decay` as factors of the optimizer's. Every trainable
        parameter is in exactly one.

    Example:
        >>> network = nn.ModuleDict({"encoder": nn.Conv2d(3, 8, 3), "head": nn.Conv2d(8, 2, 1)})
        >>> groups = parameter_groups(network, head_lr_multiplier=10)
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups[:3]]
        [('encoder/decay', 1.0, 1.0), ('encoder/no_decay', 1.0, 0.0), ('head/decay', 10, 1.0)]
    """
    encoder = getattr(network, "encoder", None)
    rest, rest_lr = ("network", 1.0) if encoder is None else ("head", head_lr_multiplier)
    of_encoder = set() if encoder is None else {id(parameter) for parameter in encoder.parameters()}
    groups: dict[str, dict[str, Any]] = {}
    for part, lr in (("encoder", 1.0), (rest, rest_lr)):
        groups[f"{part}/decay"] = {"params": [], "lr": lr, "weight_decay": 1.0}
        groups[f"{part}/no_decay"] = {"params": [], "lr": lr, "weight_decay": 0.0}
    groups["loss"] = {"params": [], "lr": 1.0, "weight_decay": 0.0}
    for parameter, decayed in _trainable(network):
        part = "encoder" if id(parameter) in of_encoder else rest
        groups[f"{part}/decay" if decayed or decay_norm_and_bias else f"{part}/no_decay"]["params"].append(parameter)
    if loss is not None:
        groups["loss"]["params"] = _parameters_without(loss, network)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def _parameters_without(module: nn.Module, other: nn.Module) -> list[nn.Parameter]:
    """Trainable parameters of a module that another one does not have."""
    shared = {id(parameter) for parameter in other.parameters()}
    return [parameter for parameter, _ in _trainable(module) if id(parameter) not in shared]


def _trainable(module: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """Yield each trainable parameter once, and whether weight decay applies to it where it is used first."""
    seen: set[int] = set()
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter, name == "weight" and isinstance(part, _DECAYED)
