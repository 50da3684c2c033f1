"""How figures are written: scores between 0 and 1 in percent, anything else as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NOTHING = "–"
# words in the names of figures that are no scores
NO_SCORES = {"loss", "s", "ms", "seconds", "time", "MB", "epoch"}


@dataclass(frozen=True)
class Unit:
    """Scale and name of a metric.

    Attributes:
        scale: what a figure is multiplied with.
        label: what follows the metric's name in a header.
        digits: after the point.

    Example:
        >>> unit_of("test/mIoU").mean(0.61114, 0.0031), unit_of("test/loss").difference(-0.25)
        ('61.11 ± 0.31', '-0.250')
    """

    scale: float
    label: str
    digits: int

    def number(self, value: float | None) -> str:
        """A figure."""
        return NOTHING if value is None else f"{self.scale * value:.{self.digits}f}"

    def mean(self, mean: float | None, std: float | None) -> str:
        """A mean and, where there is one, its standard deviation."""
        return self.number(mean) + (f" ± {self.number(std)}" if mean is not None and std is not None else "")

    def range(self, values: Sequence[float]) -> str:
        """Lowest and highest of several figures."""
        return f"{self.number(min(values))} … {self.number(max(values))}" if len(values) > 1 else NOTHING

    def difference(self, value: float | None) -> str:
        """A figure with its sign."""
        return NOTHING if value is None else f"{self.scale * value:+.{self.digits}f}"

    def interval(self, ends: Sequence[float] | None) -> str:
        """Both ends of an interval of differences."""
        return NOTHING if ends is None else f"[{self.difference(ends[0])}, {self.difference(ends[1])}]"


def unit_of(metric: str) -> Unit:
    """The unit of a logged figure, told by its name."""
    words = metric.rpartition("/")[2].split("_")
    is_score = NO_SCORES.isdisjoint(words) and not metric.startswith("lr-")
    return Unit(100.0, " (%)", 2) if is_score else Unit(1.0, "", 3)
