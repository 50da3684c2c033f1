"""Spearman's rank correlation of rows with published scores, against hand values and SciPy."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from beyondpixel.experiments.bootstrap import resampled_scores
from beyondpixel.experiments.compare.command import as_text
from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.compare.plots import draw_plots
from beyondpixel.experiments.compare.rows import Comparison, compare_runs
from beyondpixel.experiments.image_counts import ImageCounts

PUBLISHED = {"a": 79.2, "b": 79.0, "c": 78.7, "d": 78.5}
EQUAL = {"a2": 79.2, "a3": 79.2}


def add_rows(
    folder: Path, make_run: Callable[..., Any], scores: dict[str, Any], *, data_set: str | None, **more: Any
) -> Comparison:
    for number, (row, score) in enumerate(scores.items()):
        axes = {"loss": "rmi", "df": 2 + number}
        run = make_run(folder, row, 1, score, axes=axes, published={**PUBLISHED, **EQUAL}.get(row), **more.get(row, {}))
        if data_set is not None:
            run.record = {**run.record, "reference": {**run.record["reference"], "data_set": data_set}}
    return compare_runs(read_runs([folder]), "test/mIoU")


@pytest.mark.parametrize("data_set", [None, "VOC 2012 val"])
def test_two_neighbors_exchanged_of_four(tmp_path: Path, make_run: Callable[..., Any], data_set: str | None) -> None:
    """Ranks differ by 1 twice: 1 - 6 * 2 / (4 * 15) = 0.8; a row without a published score takes no part."""
    compared = add_rows(tmp_path, make_run, {"a": 0.44, "b": 0.40, "c": 0.42, "d": 0.39, "e": 0.5}, data_set=data_set)
    where = " on VOC 2012 val" if data_set else ""
    text = as_text(compared, "md")
    assert f"Order of the 4 rows of t and that published{where}: Spearman's ρ 0.80." in text
    assert ("published (%)" in text) == (data_set is None)
    figure = draw_plots(compared)
    figure.canvas.draw()
    legend, panel = figure.axes[0].get_legend(), figure.axes[0].get_window_extent()
    assert legend is not None
    # what has the right axis may lie anywhere in the panel
    assert (legend.get_window_extent().y1 < panel.y0) == (data_set is not None)


def test_equal_scores_share_their_ranks(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    """Ranks 4, 2.5, 2.5, 1 and 4, 3, 2, 1: 4.5 / sqrt(4.5 · 5) = 0.949."""
    compared = add_rows(tmp_path, make_run, {"a": 0.44, "b": 0.40, "c": 0.40, "d": 0.39}, data_set=None)
    assert "Spearman's ρ 0.95." in as_text(compared, "md")


def test_three_rows_have_an_order(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    compared = add_rows(tmp_path, make_run, {"a": 0.4, "b": 0.5, "c": 0.6}, data_set=None)
    assert "Order of the 3 rows of t and that published: Spearman's ρ -1.00." in as_text(compared, "md")


@pytest.mark.parametrize(
    "scores",
    [
        {"a": 0.4, "b": 0.5, "e": 0.6},
        {"a": 0.4, "b": 0.5, "c": None},  # not finished
        {"a": 0.4, "a2": 0.5, "a3": 0.6},  # published as one number
    ],
)
def test_rows_without_an_order(tmp_path: Path, make_run: Callable[..., Any], scores: dict[str, Any]) -> None:
    assert "Spearman" not in as_text(add_rows(tmp_path, make_run, scores, data_set=None), "md")


def test_its_interval_is_that_of_scores_drawn_again(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    generator, counts = np.random.default_rng(0), {}
    for row, hits in zip(PUBLISHED, (31, 30, 29, 30), strict=True):
        confusion = generator.integers(0, 20, size=(9, 3, 3)) + hits * np.eye(3, dtype=int)
        names = np.array([f"image{index}" for index in range(9)])
        counts[row] = ImageCounts(names, np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1), confusion.sum(2))
    files = {row: {"counts": (one.intersection, one.predicted, one.target)} for row, one in counts.items()}
    scores = {row: one.mean_iou() for row, one in counts.items()}
    text = as_text(add_rows(tmp_path, make_run, scores, data_set=None, **files), "md")
    found = re.search(r"Spearman's ρ (\S+), 95 % interval \[(\S+), (\S+)\] by the same draws", text)
    assert found is not None
    correlation, *interval = map(float, found.groups())
    drawn = np.stack([resampled_scores(one) for one in counts.values()], axis=1)
    theirs = list(PUBLISHED.values())
    each = [spearmanr(draw, theirs).statistic for draw in drawn]
    low, high = np.quantile(each, [0.025, 0.975])
    assert low < high
    assert interval == pytest.approx([low, high], abs=0.006)
    assert correlation == pytest.approx(spearmanr(list(scores.values()), theirs).statistic, abs=0.005)


def test_scores_of_another_data_set_have_an_axis_of_their_own(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    scores = {"a": 0.44, "b": 0.40, "c": 0.42, "d": 0.39}
    figure = draw_plots(add_rows(tmp_path, make_run, scores, data_set="VOC 2012 val"))
    left, right = figure.axes
    assert right.get_ylabel() == "published, VOC 2012 val (%)"
    (line,) = right.get_lines()
    assert list(line.get_ydata()) == list(PUBLISHED.values())
    assert left.get_ylim()[1] < 50
    assert {text.get_text() for text in left.get_legend().get_texts()} == {"ours", "published (right)"}
