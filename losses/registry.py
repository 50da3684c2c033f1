"""Losses by name, for run specs."""

import inspect
from typing import Any

from beyondpixel.losses.affinity import AdaptiveAffinityFieldLoss, AffinityFieldLoss
from beyondpixel.losses.base import SegmentationLoss
from beyondpixel.losses.cross_entropy import BinaryCrossEntropyLoss, CrossEntropyLoss
from beyondpixel.losses.pyramid import PyramidLoss
from beyondpixel.losses.rmi import RMILoss

LOSSES: dict[str, type[SegmentationLoss]] = {
    "ce": CrossEntropyLoss,
    "bce": BinaryCrossEntropyLoss,
    "rmi": RMILoss,
    "affinity": AffinityFieldLoss,
    "adaptive_affinity": AdaptiveAffinityFieldLoss,
    "pyramid": PyramidLoss,
}


def build_loss(name: str, *, num_classes: int, ignore_index: int = 255, **arguments: Any) -> SegmentationLoss:
    """Make a loss from its name and plain arguments.

    Args:
        name: a key of `LOSSES`.
        num_classes: C.
        ignore_index: label of void pixels.
        arguments: the loss's other arguments.

    Raises:
        ValueError: if the name or an argument is unknown; the message lists the valid ones.

    >>> build_loss("rmi", num_classes=11, region_size=3, downsampling_factor=4)
    RMILoss()
    """
    if name not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(map(repr, LOSSES))}, got {name!r}")
    loss = LOSSES[name]
    valid = [key for key in inspect.signature(loss).parameters if key not in ("num_classes", "ignore_index")]
    unknown = sorted(set(arguments) - set(valid))
    if unknown:
        raise ValueError(f"loss {name!r}: unknown argument {', '.join(unknown)}; expected {', '.join(valid)}")
    return loss(num_classes=num_classes, ignore_index=ignore_index, **arguments)
