"""Spearman's rank correlation of the rows' scores and the published ones."""

from __future__ import annotations

import math

import pandas as pd

from beyondpixel.experiments.bootstrap import mean_scores, percentile_interval
from beyondpixel.experiments.compare.rows import Comparison, paired

MIN_ROWS = 3


def rank_order(comparison: Comparison) -> str | None:
    """One sentence with the rank correlation of one table; None if fewer than three rows have both scores.

    Its 95 % interval is that of the scores on the draws of seeds and images, where the runs have pixel counts.
    """
    rows = comparison.rows[comparison.rows["n"] > 0]
    column = "published_other" if rows["published_other"].notna().any() else "published"
    rows = rows[rows[column].notna()]
    if len(rows) < MIN_ROWS or rows[column].nunique() == 1:
        return None
    # Spearman's ρ is Pearson's of the ranks
    theirs = rows[column].rank().reset_index(drop=True)
    correlation = theirs.corr(rows["mean"].rank().reset_index(drop=True))
    scored, low, high = comparison.scored, math.nan, math.nan
    drawn = paired(*(scored[scored["row"] == row] for row in rows["row"]))
    if drawn:
        ranks = pd.DataFrame(mean_scores(drawn)).dropna(axis="columns").rank()
        low, high = percentile_interval(ranks.corrwith(theirs).to_numpy())
    interval = "" if math.isnan(low) else f", 95 % interval [{low:.2f}, {high:.2f}] by the same draws"
    where = f" on {rows['other_data_set'].iloc[0]}" if column == "published_other" else ""
    return (
        f"Order of the {len(rows)} rows of {comparison.tables[0]} and that published{where}: Spearman's "
        f"ρ {correlation:.2f}{interval}."
    )
