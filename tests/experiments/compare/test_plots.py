"""Which rows make a curve, and what is drawn of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.container import ErrorbarContainer

from beyondpixel.experiments.compare.plots import draw_plots, plots_as_svg, save_plot
from beyondpixel.experiments.compare.rows import Row, collect_rows
from beyondpixel.experiments.compare.series import panels
from beyondpixel.experiments.errors import UserError

# pooling, DF, R: a part of Table 3
GRID = [("max", 4, 3), ("avg", 2, 3), ("avg", 4, 3), ("avg", 6, 3), ("avg", 4, 1), ("avg", 6, 1)]


@pytest.fixture
def rows(tmp_path: Path, make_run: Callable[..., Any]) -> list[Row]:
    for index, (pooling, df, region) in enumerate(GRID):
        for seed in (1, 2):
            axes = {"loss": "rmi", "pooling": pooling, "df": df, "region_size": region}
            score = 0.7 + 0.01 * index + 0.001 * seed
            make_run(tmp_path, f"{pooling}_{df}_{region}", seed, score, axes=axes, published=78 + index)
    make_run(tmp_path, "ce", 1, 0.6, axes={"pooling": None, "region_size": None})
    make_run(tmp_path, "unfinished", 1, None, axes={"loss": "rmi", "df": 9, "pooling": "avg", "region_size": 3})
    return collect_rows([tmp_path], metric="test/mIoU")


def curves(rows: list[Row]) -> dict[str, dict[str, list[str]]]:
    return {panel.axis: {s.label: [row.name for row in s.rows] for s in panel.series} for panel in panels(rows)}


def test_a_curve_varies_one_axis_alone(rows: list[Row]) -> None:
    found = curves(rows)
    assert list(found) == ["loss", "pooling", "df", "region_size"]
    assert found["df"] == {"R 3": ["avg_2_3", "avg_4_3", "avg_6_3"], "R 1": ["avg_4_1", "avg_6_1"]}
    assert found["region_size"] == {"DF 4": ["avg_4_1", "avg_4_3"], "DF 6": ["avg_6_1", "avg_6_3"]}
    assert found["pooling"] == {"": ["avg_4_3", "max_4_3"]}
    assert set(found["loss"][""]) == {row.name for row in rows if row.values}


def test_rows_that_share_no_axis_stand_side_by_side(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    make_run(tmp_path, "a", 1, 0.5, axes={"loss": "ce", "lr": 1})
    make_run(tmp_path, "b", 1, 0.5, axes={"loss": "bce", "lr": 2})
    assert curves(collect_rows([tmp_path], metric="test/mIoU")) == {"row": {"": ["a", "b"]}}


def test_points_error_bars_and_published_numbers(rows: list[Row]) -> None:
    figure = draw_plots(rows, "test/mIoU")
    panel = next(axes for axes in figure.axes if axes.get_xlabel() == "DF")
    assert panel.get_ylabel() == "test/mIoU (%)"
    (bars,) = [c for c in panel.containers if isinstance(c, ErrorbarContainer) and c.get_label() == "ours: R 3"]
    line, _, (segments,) = bars.lines
    assert line.get_xdata().tolist() == [2, 4, 6]
    assert line.get_ydata() == pytest.approx([71.15, 72.15, 73.15])
    low, high = segments.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 100 * 0.001 / 2**0.5)
    theirs = next(line for line in panel.lines if line.get_label() == "published: R 3")
    assert theirs.get_ydata() == pytest.approx([79, 80, 81])
    (base,) = [line for line in panel.lines if line.get_label() == "ce (ours)"]
    assert base.get_ydata()[0] == pytest.approx(60)
    plt.close("all")


def test_saved_as_png_and_one_file_a_table(rows: list[Row], tmp_path: Path, make_run: Callable[..., Any]) -> None:
    save_plot(rows, "test/mIoU", tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")
    make_run(tmp_path, "ce", 1, 0.5, table="u")
    files = save_plot(collect_rows([tmp_path], metric="test/mIoU"), "test/mIoU", tmp_path / "plot.svg")
    assert sorted(file.name for file in files) == ["t_plot.svg", "u_plot.svg"]
    assert sorted(tmp_path.glob("*.svg")) == sorted(files)
    with pytest.raises(UserError, match="--plot: expected a file that ends in .png, .pdf, .svg, got plot.gif"):
        save_plot(rows, "test/mIoU", Path("plot.gif"))


def test_svg_of_a_page_takes_its_colour_and_keeps_text(rows: list[Row]) -> None:
    drawn = plots_as_svg(rows, "test/mIoU")
    assert len(drawn) == 4
    for svg in drawn:
        assert "currentColor" in svg
        assert "#010203" not in svg
        assert "<text" in svg
        assert 'pt"' not in svg.split(">")[0]
