"""Curves of mIoU near boundaries, against figures put into run folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from beyondpixel.experiments.cli import main
from beyondpixel.experiments.compare.rows import collect_rows
from beyondpixel.experiments.compare.trimap import draw_trimap, save_trimap
from beyondpixel.experiments.errors import UserError

MakeRun = Callable[..., Any]


def near(*scores: float) -> dict[str, float]:
    return {f"test/trimap_mIoU/{width}": score for width, score in zip((1, 4, 16), scores, strict=True)}


def test_a_curve_a_row_with_the_spread_of_its_seeds(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "ce", 1, 0.4, figures=near(0.20, 0.25, 0.30))
    make_run(tmp_path, "ce", 2, 0.4, figures=near(0.24, 0.25, 0.32))
    make_run(tmp_path, "rmi", 1, 0.5, figures={"test/trimap_mIoU/1": 0.3, "test/trimap_mIoU/16": 0.5})
    make_run(tmp_path, "untested", 1, 0.5)
    axes = Figure().add_subplot()
    draw_trimap(axes, collect_rows([tmp_path], metric="test/mIoU"))
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


def test_the_command_writes_a_file_a_table(
    tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    for table in ("t", "u"):
        make_run(tmp_path, "ce", 1, 0.4, table=table, figures=near(0.2, 0.3, 0.4))
    make_run(tmp_path, "ce", 1, 0.4, table="untested")
    words = ["--also", "test/trimap_mIoU/1", "test/trimap_mIoU/16", "--format", "md"]
    main(["compare", str(tmp_path), "--trimap", str(tmp_path / "near.png"), *words])
    assert sorted(file.name for file in tmp_path.glob("*.png")) == ["t_near.png", "u_near.png"]
    shown = capsys.readouterr().out
    assert "trimap_mIoU/1 (%) | trimap_mIoU/16 (%) | images/s" in shown
    assert "| 20.00 | 40.00 | 10.0 |" in shown


def test_runs_without_such_figures_and_files_of_another_kind(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "ce", 1, 0.4)
    with pytest.raises(UserError, match="--trimap: no run has a test/trimap_mIoU/<width>"):
        save_trimap(collect_rows([tmp_path], metric="test/mIoU"), tmp_path / "near.png")
    make_run(tmp_path, "rmi", 1, 0.4, figures=near(0.2, 0.3, 0.4))
    with pytest.raises(UserError, match="--trimap: expected a file that ends in .png, .pdf, .svg, got near.gif"):
        save_trimap(collect_rows([tmp_path], metric="test/mIoU"), Path("near.gif"))
