"""The choices behind one RMI term, checked once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from beyondpixel.losses.functional._validation import check_choice, check_positive_int
from beyondpixel.losses.functional.rmi.bound import region_count
from beyondpixel.losses.functional.rmi.pooling import AverageWindows, MaxWindows, Windows

COVARIANCES = ("sum", "mean")
BACKENDS = ("eager", "compiled")
POOLINGS = ("avg", "max", "interp", "stride")


@dataclass(frozen=True)
class RegionOptions:
    """How regions are cut and how their covariances are taken.

    Attributes:
        region_size: R, the side of a region on the pooled maps.
        factors: downsampling factors DF; the bound is averaged over them.
        pooling: one of `POOLINGS`.
        covariance: "sum" as in the authors' code or "mean" as in the paper.
        ridge: what is added to the diagonal of Σ_P and of M.
        backend: "eager" or "compiled".

    Raises:
        ValueError: if a value is out of range; names list the valid ones.
    """

    region_size: int
    factors: tuple[int, ...]
    pooling: str
    covariance: str
    ridge: float
    backend: str = "eager"

    def __post_init__(self) -> None:
        check_positive_int("region_size", self.region_size)
        if not self.factors:
            raise ValueError("downsampling_factor: expected at least one factor, got an empty sequence")
        for factor in self.factors:
            check_positive_int("downsampling_factor", factor)
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("covariance", self.covariance, COVARIANCES)
        check_choice("backend", self.backend, BACKENDS)
        if not 0 < self.ridge < float("inf"):
            raise ValueError(f"ridge: expected a positive number, got {self.ridge!r}")

    def plan(self, factor: int, height: int, width: int) -> "Plan":
        """What one factor means for maps of a size, after checking that a region fits.

        Raises:
            ValueError: if the pooled map is smaller than a region.
        """
        windows = MaxWindows(factor) if self.pooling == "max" and factor > 1 else AverageWindows(factor)
        interpolated, step = None, 1
        if self.pooling in ("interp", "stride"):
            windows = AverageWindows(1)
        if self.pooling == "interp" and factor > 1:
            interpolated = (height // factor, width // factor)
        elif self.pooling == "stride":
            step = factor
        size = interpolated or windows.size(height, width)
        if min(region_count(side, self.region_size, step) for side in size) < 1:
            raise ValueError(
                f"region_size: a region of {self.region_size} × {self.region_size} does not fit the pooled map of "
                f"{size[0]} × {size[1]} (maps of {height} × {width}, downsampling_factor {factor}, pooling "
                f"{self.pooling!r}); use larger crops, or a smaller region_size or downsampling_factor"
            )
        return Plan(windows, interpolated, step)


class Plan(NamedTuple):
    """How maps are made smaller for one downsampling factor.

    Attributes:
        windows: what is pooled first.
        interpolated: size to interpolate to then, if any.
        step: from one region to the next.
    """

    windows: Windows
    interpolated: tuple[int, int] | None
    step: int


def as_factors(downsampling_factor: int | Sequence[int]) -> tuple[int, ...]:
    """One factor or several as a tuple."""
    return tuple(downsampling_factor) if isinstance(downsampling_factor, Sequence) else (downsampling_factor,)
