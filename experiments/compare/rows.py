"""Rows of a comparison: seeds averaged, differences to a baseline with intervals over seeds and test images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pandas as pd

from beyondpixel.experiments.axes import EVALUATION_AXES
from beyondpixel.experiments.bootstrap import Scores, difference_interval, mean_interval, resampled_scores
from beyondpixel.experiments.compare.confounders import confounders, moved_data
from beyondpixel.experiments.compare.frame import Runs
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.image_counts import ImageCounts

# a score is logged in float64 from the same counts; a larger difference means that the file is of another evaluation
SCORE_TOLERANCE = 1e-4
ROW = ["table", "row"]
Key = tuple[str, str]  # table and row
Groups = Mapping[Key, pd.DataFrame]  # the runs of each row


@dataclass(frozen=True)
class Comparison:
    """Rows of one or more tables, compared by one score.

    Attributes:
        metric: the score.
        also: additional scores to show.
        runs: the lines of `Runs.frame` with `resampled`: the ids of the test images and the scores on resampled
            test sets, or None.
        rows: one line per row, by table, the baseline first. Columns: `table`, `row`, `is_baseline`; `n` runs with a
            score and `unfinished` ones without; `mean`, `std`, `min`, `max`, the interval of the mean `low` and `high`;
            `difference` to the baseline with `difference_low` and `difference_high`; `images` resampled;
            `one_training` if one side has one seed; `published` and `published_difference` in percent;
            `published_other`, a published number on the data set `other_data_set`, in percent; `confounders` and
            `moved_data` as phrases; every axis.
        axes: names of the axes.
        damaged: runs left out, with what is wrong with them.
    """

    metric: str
    also: tuple[str, ...]
    runs: pd.DataFrame = field(repr=False)
    rows: pd.DataFrame = field(repr=False)
    axes: list[str] = field(repr=False)
    damaged: list[str]

    @property
    def tables(self) -> list[str]:
        """Names of the tables."""
        return list(dict.fromkeys(self.rows["table"]))

    def table(self, name: str) -> Comparison:
        """Select one table; damaged runs are part of the last one, so that they are reported once."""
        runs, rows = (frame[frame["table"] == name].reset_index(drop=True) for frame in (self.runs, self.rows))
        damaged = self.damaged if name == self.tables[-1] else []
        return Comparison(self.metric, self.also, runs, rows, self.axes, damaged)

    @property
    def scored(self) -> pd.DataFrame:
        """The lines of `runs` that have a score."""
        return self.runs[self.runs[self.metric].notna()]

    def statistics(self, score: str) -> pd.DataFrame:
        """`mean` and `std` over seeds of any score, one line per row in the order of `rows`."""
        grouped = self.runs.groupby(ROW, sort=False)[score].agg(["mean", "std"])
        return grouped.reindex(pd.MultiIndex.from_frame(self.rows[ROW])).reset_index(drop=True)


def compare_runs(runs: Runs, metric: str, *, baseline: str | None = None, also: Sequence[str] = ()) -> Comparison:
    """Compare the rows of some runs.

    Args:
        runs: from `read_runs`.
        metric: a score of summary.json, e.g. `test/mIoU`.
        baseline: the row that differences refer to, `ROW` of each table or `TABLE/ROW` for all tables; None takes each
            table's first row with the CE loss and without post-processing.
        also: additional scores.

    Raises:
        UserError: if no run has the metric or one of the additional scores, or the baseline does not exist.
    """
    scores = sorted(runs.frame.select_dtypes(float))
    for score in (metric, *also):
        if score not in scores:
            shown = [known for known in scores if known.startswith(("test/", "val/"))] or scores
            raise UserError(f"no run has a {score} yet; available scores: {', '.join(shown) or 'none'}")
    frame, unreadable = _with_resampled(runs.frame, metric)
    groups = dict(list(frame.groupby(ROW, sort=False)))
    baselines = {table: _baseline_of(table, groups, baseline) for table in frame["table"].unique()}
    if baseline is not None and not any(baselines.values()):
        raise UserError(f"--baseline: no row named {baseline}; rows are {', '.join(row for _, row in groups)}")
    tables = list(baselines)
    keys = sorted(groups, key=lambda key: (tables.index(key[0]), key != baselines[key[0]]))
    rows = pd.DataFrame([_row(key, groups, baselines[key[0]], metric) for key in keys])
    rows = rows.merge(frame.drop_duplicates(ROW)[[*ROW, *runs.axes]], on=ROW)
    return Comparison(metric, tuple(also), frame, rows, runs.axes, [*runs.damaged, *unreadable])


def _row(key: Key, groups: Groups, baseline: Key | None, metric: str) -> dict[str, Any]:
    """Columns of one row without its axes."""
    group = groups[key]
    base = group[:0] if baseline is None or baseline == key else groups[baseline]  # no runs for the baseline itself
    scored, base_scored = (runs[runs[metric].notna()] for runs in (group, base))
    values = scored[metric]
    lines, base_lines = scored.to_dict("records"), base_scored.to_dict("records")
    own, both = paired(scored), paired(base_scored, scored)
    same_trainings = scored["training"].tolist() == base_scored["training"].tolist()
    low, high = mean_interval(own[0]) if own else (math.nan, math.nan)
    ends = difference_interval(*both, same_trainings=same_trainings) if both else (math.nan, math.nan)
    return {
        "table": key[0],
        "row": key[1],
        "is_baseline": key == baseline,
        "n": len(values),
        "unfinished": len(group) - len(values),
        **values.agg(["mean", "std", "min", "max"]).to_dict(),
        "low": low,
        "high": high,
        "images": len(lines[0]["resampled"][0]) if own else 0,
        "difference": values.mean() - base_scored[metric].mean(),
        "difference_low": ends[0],
        "difference_high": ends[1],
        "one_training": min(len(lines), len(base_lines)) == 1,
        "published": _published(group, metric),
        "published_difference": _published(group, metric) - _published(base, metric),
        "published_other": _published(group, metric, other_data_set=True),
        "other_data_set": group.iloc[0]["reference"].get("data_set"),
        "confounders": confounders(lines, base_lines),
        "moved_data": moved_data(lines, base_lines),
    }


def _baseline_of(table: str, groups: Groups, wanted: str | None) -> Key | None:
    """Table and name of the row that a table's differences refer to: its own, unless `wanted` names another table's."""
    for key, group in groups.items():
        if wanted is None:
            is_baseline = key[0] == table and _is_plain_ce(group.iloc[0]["record"]["axes"])
        else:
            is_baseline = wanted == "/".join(key) or key == (table, wanted)
        if is_baseline:
            return key
    return None


def _is_plain_ce(axes: Mapping[str, Any]) -> bool:
    """Whether a row has the CE loss and no post-processing."""
    return axes.get("loss") == "ce" and all(axes[axis] is None for axis in EVALUATION_AXES)


def _published(group: pd.DataFrame, metric: str, *, other_data_set: bool = False) -> float:
    """The published number in percent, or the one on another data set; NaN if there is none of this metric."""
    stage, _, score = metric.partition("/")
    for reference in group["reference"]:
        if ("data_set" in reference) != other_data_set:
            continue
        if score.startswith("IoU/") and stage == "test" and score[4:] in (reference.get("per_class") or {}):
            return float(reference["per_class"][score[4:]])
        if "value" in reference and reference.get("metric", "test/mIoU") in (metric, score):
            return float(reference["value"])
    return math.nan


def paired(*groups: pd.DataFrame) -> list[list[Scores]] | None:
    """Resampled scores of groups of runs; None unless all have them, on the same images."""
    resampled = [group["resampled"].tolist() for group in groups]
    entries = [*chain(*resampled)]
    if not all(resampled) or None in entries or len({ids for ids, _ in entries}) > 1:
        return None
    return [[scores for _, scores in group] for group in resampled]


def _with_resampled(frame: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, list[str]]:
    """Add resampled scores to the frame, without the runs whose counts cannot be read; return their errors, too."""
    resampled, kept, damaged = [], [], []
    for index, line in enumerate(frame.to_dict("records")):
        try:
            resampled.append(_resample(line, metric))
            kept.append(index)
        except UserError as error:
            damaged.append(str(error))
    if not kept:
        raise UserError("no run can be compared:\n  " + "\n  ".join(damaged))
    frame = frame.iloc[kept].reset_index(drop=True)
    return frame.assign(resampled=pd.Series(resampled, dtype=object)), damaged


def _resample(line: dict[str, Any], metric: str) -> tuple[frozenset[str], Scores] | None:
    """Ids of the test images and resampled scores; None for a score without saved pixel counts."""
    stage, _, score = metric.partition("/")
    name = score.removeprefix("IoU/")
    file = line["run"].images_file(stage)
    has_counts = score == "mIoU" or (score.startswith("IoU/") and name in line["classes"])
    if not has_counts or not file.exists():
        return None
    counts = ImageCounts.load(file)
    index = None if score == "mIoU" else line["classes"].index(name)
    own = counts.mean_iou() if index is None else float(counts.iou_per_class()[index])
    if not abs(own - line[metric]) <= SCORE_TOLERANCE:  # NaN, such as of no images, is rejected, too
        return None
    return frozenset(counts.id.tolist()), resampled_scores(counts, class_index=index)
