"""How heads begin."""

from torch import nn


def initialize_head(part: nn.Module) -> None:
    """Kaiming's initialisation with fan-in for convolutions, zeros for their biases.

    Example:
        >>> convolution = nn.Conv2d(3, 8, kernel_size=3)
        >>> initialize_head(convolution)
        >>> convolution.bias.abs().sum().item()
        0.0
    """
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_norm_momentum(network: nn.Module, momentum: float | None) -> None:
    """Give every BatchNorm this momentum; None leaves torch's 0.1.

    Raises:
        ValueError: if it is not in (0, 1].

    Example:
        >>> norm = nn.BatchNorm2d(4)
        >>> set_norm_momentum(norm, 0.05)
        >>> norm.momentum
        0.05
    """
    if momentum is None:
        return
    if not 0 < momentum <= 1:
        raise ValueError(f"norm_momentum must be in (0, 1], got {momentum}")
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum
