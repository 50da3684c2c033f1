"""Which parameters get which learning rate and weight decay."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

_DECAYED = (_ConvNd, nn.Linear)


def parameter_groups(
    network: nn.Module,
    *,
    encoder: nn.Module | None,
    lr: float,
    weight_decay: float,
    head_lr_multiplier: float = 1.0,
    decay_norm_and_bias: bool = False,
    loss: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Split trainable parameters into encoder and head, each with and without weight decay.

    Weight decay acts on the weights of convolutions and linear layers only; norm layers, biases and everything else go
    without (the RMI authors' rule; Zhao et al., NeurIPS 2019, published code). With ``decay_norm_and_bias`` it acts on
    all of them (the MCIBI authors' rule; Jin et al., ICCV 2021, published code). What is not in ``encoder`` is the head
    and learns ``head_lr_multiplier`` times faster. Each group has a ``name``, which
    :class:`~pytorch_lightning.callbacks.LearningRateMonitor` puts into the logged key.

    Args:
        network: the module to train.
        encoder: its pretrained part, a submodule of ``network``; None if there is none, then all is ``network/…`` and
            learns at ``lr``.
        lr: base learning rate, that of the encoder.
        weight_decay: the decay of convolution and linear weights.
        head_lr_multiplier: ratio of the head's learning rate to ``lr``.
        decay_norm_and_bias: whether weight decay acts on norm layers and biases, too.
        loss: a loss with trainable parameters of its own; they learn at ``lr`` without weight decay.

    Returns:
        Groups for an optimizer, without the empty ones. Every trainable parameter is in exactly one.

    Example:
        >>> network = nn.ModuleDict({"encoder": nn.Conv2d(3, 8, 3), "head": nn.Conv2d(8, 2, 1)})
        >>> groups = parameter_groups(network, encoder=network["encoder"], lr=0.1, weight_decay=1e-4)
        >>> [(group["name"], group["weight_decay"]) for group in groups]
        [('encoder/decay', 0.0001), ('encoder/no_decay', 0.0), ('head/decay', 0.0001), ('head/no_decay', 0.0)]
    """
    in_encoder = {id(parameter) for parameter in encoder.parameters()} if encoder is not None else set()
    rest, rest_lr = ("network", lr) if encoder is None else ("head", lr * head_lr_multiplier)
    groups: dict[str, dict[str, Any]] = {}
    for part, part_lr in (("encoder", lr), (rest, rest_lr)):
        groups[f"{part}/decay"] = {"params": [], "lr": part_lr, "weight_decay": weight_decay}
        groups[f"{part}/no_decay"] = {"params": [], "lr": part_lr, "weight_decay": 0.0}
    groups["loss"] = {"params": [], "lr": lr, "weight_decay": 0.0}

    seen: set[int] = set()
    for parameter, decayed in _trainable(network):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            part = "encoder" if id(parameter) in in_encoder else rest
            decays = decayed or decay_norm_and_bias
            groups[f"{part}/decay" if decays else f"{part}/no_decay"]["params"].append(parameter)
    if loss is not None:
        groups["loss"]["params"] = [p for p in loss.parameters() if p.requires_grad and id(p) not in seen]
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def _trainable(network: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """Each trainable parameter and whether weight decay acts on it; a shared one is given as often as it is used."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                yield parameter, name == "weight" and isinstance(module, _DECAYED)
