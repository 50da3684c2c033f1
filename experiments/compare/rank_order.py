"""Spearman's rank correlation of the rows' scores and the published ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from beyondpixel.experiments.bootstrap import Interval, mean_scores, percentile_interval
from beyondpixel.experiments.compare.rows import Comparison, paired

MIN_ROWS = 3


class RankOrder(NamedTuple):
    """Spearman's rank correlation of our scores and the published ones.

    Attributes:
        rows: number of rows that have both.
        correlation: ρ in -1..1 of the means.
        interval: of ρ, from scores on the draws of seeds and images; NaN where the runs have no pixel counts.
        data_set: of the published scores; None for the rows' own.
    """

    rows: int
    correlation: float
    interval: Interval
    data_set: str | None


def rank_order(comparison: Comparison) -> RankOrder | None:
    """Rank correlation of one table; None if fewer than three rows have a score and a published one."""
    rows = comparison.rows[comparison.rows["n"] > 0]
    column = "published_other" if rows["published_other"].notna().any() else "published"
    rows = rows[rows[column].notna()]
    if len(rows) < MIN_ROWS or rows[column].nunique() == 1:
        return None
    scored = comparison.scored
    groups = [scored[scored["row"] == row] for row in rows["row"]]
    theirs = rows[column].to_numpy(dtype=float)
    drawn = paired(*groups)
    interval = percentile_interval(_correlations(mean_scores(drawn), theirs)) if drawn else (math.nan, math.nan)
    correlation = float(_correlations(rows[["mean"]].to_numpy(dtype=float), theirs)[0])
    data_set = rows["other_data_set"].iloc[0] if column == "published_other" else None
    return RankOrder(len(rows), correlation, interval, data_set)


def _correlations(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Spearman's ρ of each column of (rows, draws) with (rows,): Pearson's of the ranks; NaN where all are equal."""
    from scipy.stats import rankdata  # takes a second

    ranks, their_ranks = rankdata(ours, axis=0), rankdata(theirs)
    ranks, their_ranks = ranks - ranks.mean(axis=0), their_ranks - their_ranks.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(their_ranks @ ranks / np.sqrt((ranks**2).sum(axis=0) * (their_ranks**2).sum()))
