"""The choices behind one RMI term, checked once."""

from collections.abc import Sequence
from dataclasses import dataclass

from beyondpixel.losses.functional._validation import check_choice, check_positive_int
from beyondpixel.losses.functional.rmi.moments import region_count
from beyondpixel.losses.functional.rmi.pooling import POOLINGS, Pooling, build_pooling

COVARIANCES = ("sum", "mean")


@dataclass(frozen=True)
class RegionOptions:
    """How regions are cut and how their covariances are taken.

    Attributes:
        region_size: R, the side of a region on the pooled maps.
        factors: downsampling factors DF; the bound is averaged over them.
        pooling: one of `POOLINGS`.
        covariance: "sum" as in the authors' code or "mean" as in the paper.
        ridge: what is added to the diagonal of Σ_P and of M.

    Raises:
        ValueError: if a value is out of range; names list the valid ones.
    """

    region_size: int
    factors: tuple[int, ...]
    pooling: str
    covariance: str
    ridge: float

    def __post_init__(self) -> None:
        check_positive_int("region_size", self.region_size)
        if not self.factors:
            raise ValueError("downsampling_factor: expected at least one factor, got an empty sequence")
        for factor in self.factors:
            check_positive_int("downsampling_factor", factor)
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("covariance", self.covariance, COVARIANCES)
        if not 0 < self.ridge < float("inf"):
            raise ValueError(f"ridge: expected a positive number, got {self.ridge!r}")

    def plan(self, factor: int, height: int, width: int) -> tuple[Pooling, int]:
        """The pooling for one factor and the step between regions, after checking that a region fits.

        Raises:
            ValueError: if the pooled map is smaller than a region.
        """
        pooling, step = build_pooling(self.pooling, factor)
        size = pooling.size(height, width)
        if min(region_count(side, self.region_size, step) for side in size) < 1:
            raise ValueError(
                f"region_size: a region of {self.region_size} × {self.region_size} does not fit the pooled map of "
                f"{size[0]} × {size[1]} (maps of {height} × {width}, downsampling_factor {factor}, pooling "
                f"{self.pooling!r}); use larger crops, or a smaller region_size or downsampling_factor"
            )
        return pooling, step


def as_factors(downsampling_factor: int | Sequence[int]) -> tuple[int, ...]:
    """One factor or several as a tuple."""
    return tuple(downsampling_factor) if isinstance(downsampling_factor, Sequence) else (downsampling_factor,)
