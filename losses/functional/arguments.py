"""Checks of arguments that losses share."""

import math
from collections.abc import Iterable
from numbers import Real


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise a ValueError that lists the choices unless value is one of them."""
    valid = list(choices)
    if value not in valid:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, valid))}, got {value!r}")


def check_positive_int(name: str, value: object) -> None:
    """Raise a ValueError unless value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")


def check_softmax_classes(num_classes: int) -> None:
    """Raise a ValueError for one class: its softmax is always 1, so the loss is 0 and has no gradient."""
    if num_classes == 1:
        raise ValueError(
            "num_classes: expected at least 2 for a softmax, which is 1 for a single class, got 1; use "
            "BinaryCrossEntropyLoss ('bce')"
        )


def check_range(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise a ValueError unless value is a finite number and low <= value <= high."""
    if not (is_finite(value) and low <= value <= high):  # type: ignore[operator]
        limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name}: expected a number {limits}, got {value!r}{_yaml_hint(value)}")


def check_ridge(ridge: object) -> None:
    """Raise a ValueError unless the ridge is a positive number."""
    if not (is_finite(ridge) and ridge > 0):  # type: ignore[operator]
        raise ValueError(
            f"ridge: expected a positive number, got {ridge!r}{_yaml_hint(ridge)}; the published value is 5e-4"
        )


def is_finite(value: object) -> bool:
    """Return whether value is a finite number."""
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def _yaml_hint(value: object) -> str:
    is_text = isinstance(value, str) and "e" in value
    return " (text: YAML 1.1 reads 5e-4 as text and 5.0e-4 as a number)" if is_text else ""
