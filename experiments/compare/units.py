"""Formatting of scores: those between 0 and 1 in percent, other values unscaled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

NOTHING = "–"
# words in the names of logged values that are not scores
NOT_SCORES = {"loss", "s", "ms", "seconds", "time", "MB", "mb", "epoch", "images", "classes", "momentum"}


@dataclass(frozen=True)
class Unit:
    """Scale and label of a metric; NaN is shown as a dash.

    Attributes:
        scale: factor that values are multiplied by.
        label: suffix of the metric's name in a header.
        digits: number of digits after the decimal point.

    Example:
        >>> unit_of("test/mIoU").mean(0.61114, 0.0031), unit_of("test/loss").difference(-0.25)
        ('61.11 ± 0.31', '-0.250')
    """

    scale: float
    label: str
    digits: int

    def number(self, value: float) -> str:
        """Format a value."""
        return NOTHING if math.isnan(value) else f"{self.scale * value:.{self.digits}f}"

    def mean(self, mean: float, std: float) -> str:
        """Format a mean with its standard deviation, if there is one."""
        return self.number(mean) + ("" if math.isnan(std) else f" ± {self.number(std)}")

    def difference(self, value: float) -> str:
        """Format a value with its sign."""
        return NOTHING if math.isnan(value) else f"{self.scale * value:+.{self.digits}f}"

    def change(self, value: float) -> str:
        """Format a difference in brackets behind another value; empty if there is none."""
        return "" if math.isnan(value) else f" ({self.difference(value)})"

    def interval(self, low: float, high: float) -> str:
        """Format both ends of an interval of differences."""
        return NOTHING if math.isnan(low) else f"[{self.difference(low)}, {self.difference(high)}]"


def is_loss(metric: str) -> bool:
    """Whether lower is better."""
    return "loss" in _words(metric)


def best(means: pd.Series, metric: str) -> Any:
    """The index of the best mean: of the highest score, or the lowest loss."""
    return means.idxmin() if is_loss(metric) else means.idxmax()


def unit_of(metric: str) -> Unit:
    """The unit of a logged value, derived from its name."""
    is_score = NOT_SCORES.isdisjoint(_words(metric)) and not metric.startswith("lr")
    return Unit(100.0, " (%)", 2) if is_score else Unit(1.0, "", 3)


def _words(metric: str) -> list[str]:
    """The words of a score's name, without its stage and class."""
    return metric.split("/")[:2][-1].split("_")
