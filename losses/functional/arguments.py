"""Checks of the arguments that losses share."""

import math
from collections.abc import Iterable


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise a ValueError that lists the valid names."""
    valid = list(choices)
    if value not in valid:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, valid))}, got {value!r}")


def check_positive_int(name: str, value: object) -> None:
    """Raise a ValueError unless value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")


def check_range(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise a ValueError unless low <= value <= high; NaN is out of every range."""
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")


def check_ridge(ridge: float) -> None:
    """Raise a ValueError unless the ridge is a positive number."""
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge: expected a positive number, got {ridge!r}; the published one is 5e-4")
