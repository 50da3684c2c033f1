"""Registry of losses by name, for run specs."""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beyondpixel.losses.affinity import AdaptiveAffinityFieldLoss, AffinityFieldLoss
from beyondpixel.losses.base import SegmentationLoss
from beyondpixel.losses.combined import CombinedLoss
from beyondpixel.losses.cross_entropy import BinaryCrossEntropyLoss, CrossEntropyLoss
from beyondpixel.losses.cwmi import CWMILoss
from beyondpixel.losses.library import DiceLoss, FocalLoss, JaccardLoss, LovaszLoss, TverskyLoss
from beyondpixel.losses.pyramid import PyramidLoss
from beyondpixel.losses.rmi import RMILoss

LOSSES: dict[str, type[SegmentationLoss]] = {
    "ce": CrossEntropyLoss,
    "bce": BinaryCrossEntropyLoss,
    "rmi": RMILoss,
    "cwmi": CWMILoss,
    "affinity": AffinityFieldLoss,
    "adaptive_affinity": AdaptiveAffinityFieldLoss,
    "pyramid": PyramidLoss,
    "dice": DiceLoss,
    "jaccard": JaccardLoss,
    "lovasz": LovaszLoss,
    "focal": FocalLoss,
    "tversky": TverskyLoss,
}


def loss_class(name: str) -> type[SegmentationLoss]:
    """Return the loss class of a name; its constructor's signature has the arguments.

    Raises:
        ValueError: if the name is unknown; the message lists the valid ones.

    >>> loss_class("cwmi").__name__
    'CWMILoss'
    >>> loss_class("lovas")
    Traceback (most recent call last):
    ValueError: loss: expected one of 'ce', 'bce', 'rmi', 'cwmi', 'affinity', 'adaptive_affinity', 'pyramid', 'dice',
    'jaccard', 'lovasz', 'focal', 'tversky', got 'lovas'; did you mean 'lovasz'?
    """
    if name not in LOSSES:
        valid = ", ".join(map(repr, LOSSES))
        raise ValueError(f"loss: expected one of {valid}, got {name!r}{_closest(name, LOSSES)}")
    return LOSSES[name]


def build_loss(
    loss: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    *,
    num_classes: int,
    ignore_index: int = 255,
    **arguments: Any,
) -> SegmentationLoss:
    """Build a loss from its name and plain arguments, or a weighted sum of losses from a list.

    Args:
        loss: a key of `LOSSES`; a mapping of `name` and arguments; or a list of these, in which a mapping may also have
            a `weight`, by default 1.
        num_classes: C.
        ignore_index: label of void pixels.
        arguments: the other arguments of a loss given by name.

    Raises:
        ValueError: if a name or an argument is unknown (the message lists the valid ones), or a weight negative or NaN.

    >>> build_loss("rmi", num_classes=11, region_size=3, downsampling_factor=4)
    RMILoss()
    >>> both = build_loss(["ce", {"name": "rmi", "weight": 0.5, "pixel_loss": None}], num_classes=11)
    >>> both.weights
    {'ce': 1.0, 'rmi': 0.5}
    """
    shared = {"num_classes": num_classes, "ignore_index": ignore_index}
    if isinstance(loss, str):
        return _build_one(loss, {**shared, **arguments})
    if arguments:
        raise ValueError(f"loss: {', '.join(arguments)} must be in the mapping with the 'name' of a loss")
    if isinstance(loss, Mapping):
        name, settings = _split_name(loss)
        return _build_one(name, {**shared, **settings})
    losses: dict[str, SegmentationLoss] = {}
    weights: dict[str, float] = {}
    for entry in loss:
        name, settings = (entry, {}) if isinstance(entry, str) else _split_name(entry)
        weight = settings.pop("weight", 1.0)
        if name in losses:
            raise ValueError(f"loss: {name!r} occurs twice in the list; list each loss once")
        losses[name] = _build_one(name, {**shared, **settings})
        weights[name] = weight
    return CombinedLoss(losses, weights=weights)


def _split_name(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    settings = dict(entry) if isinstance(entry, Mapping) else {}
    if "name" not in settings:
        raise ValueError(f"loss: expected a name, or a mapping with 'name', got {entry!r}")
    return settings.pop("name"), settings


def _build_one(name: str, arguments: Mapping[str, Any]) -> SegmentationLoss:
    loss = loss_class(name)
    valid = list(inspect.signature(loss).parameters)
    for argument in arguments:
        if argument not in valid:
            expected = ", ".join(key for key in valid if key not in ("num_classes", "ignore_index"))
            raise ValueError(
                f"loss {name!r}: unknown argument {argument}; expected {expected}{_closest(argument, valid)}"
            )
    return loss(**arguments)


def _closest(name: object, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), valid, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
