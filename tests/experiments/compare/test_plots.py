"""Which rows make a curve, and what is drawn of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from beyondpixel.experiments.compare.command import compare
from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.compare.plots import (
    as_svg,
    draw_panel,
    draw_plots,
    draw_trimap,
    panels,
    save_plots,
    save_trimap,
)
from beyondpixel.experiments.compare.rows import Comparison, compare_runs
from beyondpixel.experiments.errors import UserError

# pooling, DF, R: a part of Table 3
GRID = [("max", 4, 3), ("avg", 2, 3), ("avg", 4, 3), ("avg", 6, 3), ("avg", 4, 1), ("avg", 6, 1)]


def compared(folder: Path) -> Comparison:
    return compare_runs(read_runs([folder]), "test/mIoU")


@pytest.fixture
def rows(tmp_path: Path, make_run: Callable[..., Any]) -> Comparison:
    for index, (pooling, df, region) in enumerate(GRID):
        for seed in (1, 2):
            axes = {"loss": "rmi", "pooling": pooling, "df": df, "region_size": region}
            score = 0.7 + 0.01 * index + 0.001 * seed
            make_run(tmp_path, f"{pooling}_{df}_{region}", seed, score, axes=axes, published=78 + index)
    make_run(tmp_path, "ce", 1, 0.6, axes={"pooling": None, "region_size": None})
    make_run(tmp_path, "unfinished", 1, None, axes={"loss": "rmi", "df": 9, "pooling": "avg", "region_size": 3})
    return compared(tmp_path)


def curves(rows: Comparison) -> dict[str, dict[str, list[str]]]:
    return {
        axis: {label: group["row"].tolist() for label, group in series.items()} for axis, series in panels(rows).items()
    }


def test_a_curve_varies_one_axis_alone(rows: Comparison) -> None:
    found = curves(rows)
    assert list(found) == ["loss", "pooling", "df", "region_size"]
    assert found["df"] == {"R 3": ["avg_2_3", "avg_4_3", "avg_6_3"], "R 1": ["avg_4_1", "avg_6_1"]}
    assert found["region_size"] == {"DF 4": ["avg_4_1", "avg_4_3"], "DF 6": ["avg_6_1", "avg_6_3"]}
    assert found["pooling"] == {"": ["avg_4_3", "max_4_3"]}
    assert set(found["loss"][""]) == set(rows.rows["row"]) - {"unfinished"}


def test_rows_that_share_no_axis_stand_side_by_side(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    make_run(tmp_path, "a", 1, 0.5, axes={"loss": "ce", "lr": 1})
    make_run(tmp_path, "b", 1, 0.5, axes={"loss": "bce", "lr": 2})
    assert curves(compared(tmp_path)) == {"row": {"": ["a", "b"]}}


def test_points_error_bars_and_published_numbers(rows: Comparison) -> None:
    figure = draw_plots(rows)
    panel = next(axes for axes in figure.axes if axes.get_xlabel() == "DF")
    assert panel.get_ylabel() == "test/mIoU (%)"
    (bars,) = [c for c in panel.containers if isinstance(c, ErrorbarContainer) and c.get_label() == "ours: R 3"]
    line, _, (segments,) = bars.lines
    assert line.get_xdata() == pytest.approx([2, 4, 6], abs=0.05)  # two series stand side by side
    assert line.get_ydata() == pytest.approx([71.15, 72.15, 73.15])
    low, high = segments.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 100 * 0.001 / 2**0.5)
    theirs = next(line for line in panel.lines if line.get_label() == "published: R 3")
    assert theirs.get_ydata() == pytest.approx([79, 80, 81])
    (base,) = [line for line in panel.lines if line.get_label() == "ce (ours)"]
    assert base.get_ydata()[0] == pytest.approx(60)


def test_saved_as_png_and_one_file_a_table(rows: Comparison, tmp_path: Path, make_run: Callable[..., Any]) -> None:
    save_plots(rows, tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")
    make_run(tmp_path, "ce", 1, 0.5, table="u")
    files = save_plots(compared(tmp_path), tmp_path / "plot.svg")
    assert sorted(file.name for file in files) == ["t_plot.svg", "u_plot.svg"]
    assert sorted(tmp_path.glob("*.svg")) == sorted(files)


@pytest.mark.parametrize("option", ["plot", "trimap", "grid"])
def test_a_wrong_ending_is_told_before_any_run_is_read(option: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"--{option}: expected a file that ends in .*\.png.*, got out\.gif"):
        compare([tmp_path / "missing"], **{option: Path("out.gif")})


def test_svg_of_a_page_takes_its_color_and_keeps_text(rows: Comparison) -> None:
    for axis, series in panels(rows).items():
        svg = as_svg(partial(draw_panel, axis=axis, series=series, comparison=rows), axis)
        assert "currentColor" in svg
        assert "#010203" not in svg
        assert "<text" in svg
        assert 'pt"' not in svg.split(">")[0]


def test_a_series_for_each_post_processing(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    for df in (2, 4):
        axes = {"loss": "rmi", "df": df, "postprocess": None}
        make_run(tmp_path, f"df{df}", 1, 0.5, axes=axes, evaluations={"crf:5": 0.6})
    found = curves(compared(tmp_path))
    assert found["df"] == {
        "postprocess none": ["df2", "df4"],
        "postprocess crf:5": ["df2 + crf:5", "df4 + crf:5"],
    }
    assert found["postprocess"] == {"DF 2": ["df2", "df2 + crf:5"], "DF 4": ["df4", "df4 + crf:5"]}


def test_error_bars_are_intervals_where_counts_are_kept(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    """Images alike and two seeds: the interval ends at the two scores."""
    target = np.full((4, 1), 100)
    for df in (2, 4):
        for seed, hits in ((1, 40), (2, 60)):
            counts = (np.full((4, 1), hits), np.full((4, 1), hits), target)
            make_run(tmp_path, f"df{df}", seed, hits / 100, axes={"loss": "rmi", "df": df}, counts=counts)
    figure = draw_plots(compared(tmp_path))
    (bars,) = [c for c in figure.axes[0].containers if isinstance(c, ErrorbarContainer)]
    assert [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()] == [pytest.approx([40, 60])] * 2
    assert "95 % intervals over seeds and test images" in figure.get_suptitle()


def near(*scores: float) -> dict[str, float]:
    return {f"test/trimap_mIoU/{width}": score for width, score in zip((1, 4, 16), scores, strict=True)}


def test_a_trimap_curve_a_row_with_the_spread_of_its_seeds(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    make_run(tmp_path, "ce", 1, 0.4, figures=near(0.20, 0.25, 0.30))
    make_run(tmp_path, "ce", 2, 0.4, figures=near(0.24, 0.25, 0.32))
    make_run(tmp_path, "rmi", 1, 0.5, figures={"test/trimap_mIoU/1": 0.3, "test/trimap_mIoU/16": 0.5})
    make_run(tmp_path, "untested", 1, 0.5)
    axes = Figure().add_subplot()
    draw_trimap(axes, compared(tmp_path))
    ce, rmi = [bars for bars in axes.containers if isinstance(bars, ErrorbarContainer)]
    assert (ce.get_label(), rmi.get_label()) == ("ce", "rmi")
    line, _, (segments,) = ce.lines
    assert line.get_xdata() == pytest.approx([1, 4, 16])  # not in the order of their names: 1, 16, 4
    assert line.get_ydata() == pytest.approx([22, 25, 31])
    spreads = [(ends[1, 1] - ends[0, 1]) / 2 for ends in segments.get_segments()]
    assert spreads == pytest.approx([4 / 2**0.5, 0, 2 / 2**0.5])
    assert rmi.lines[0].get_xdata() == pytest.approx([1, 16])
    assert rmi.lines[0].get_ydata() == pytest.approx([30, 50])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "4", "16"]


def test_trimap_files_and_what_has_none(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    make_run(tmp_path, "ce", 1, 0.4, table="untested")
    with pytest.raises(UserError, match="--trimap: no run has a test/trimap_mIoU/<width>"):
        save_trimap(compared(tmp_path), tmp_path / "near.png")
    for table in ("t", "u"):
        make_run(tmp_path, "ce", 1, 0.4, table=table, figures=near(0.2, 0.3, 0.4))
    files = save_trimap(compared(tmp_path), tmp_path / "near.png")
    assert [file.name for file in files] == ["t_near.png", "u_near.png"]
    assert sorted(tmp_path.glob("*.png")) == files
