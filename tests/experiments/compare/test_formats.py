"""Per-class tables, LaTeX, CSV, and tables with very many or very odd rows."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from beyondpixel.experiments.cli import main
from beyondpixel.experiments.compare.command import as_text, compare
from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.compare.report import write_report
from beyondpixel.experiments.compare.rows import Comparison, compare_runs
from beyondpixel.experiments.compare.tables import Table, as_latex, class_table
from beyondpixel.experiments.compare.units import best, unit_of
from beyondpixel.experiments.errors import UserError

MakeRun = Callable[..., Any]


def compared(folder: Path) -> Comparison:
    return compare_runs(read_runs([folder]), "test/mIoU")


@pytest.fixture
def folder(tmp_path: Path, make_run: MakeRun) -> Path:
    for seed, (sky, car) in enumerate([(0.8, 0.1), (0.9, 0.2)], start=1):
        make_run(tmp_path, "ce", seed, 0.5, figures={"test/IoU/sky": sky, "test/IoU/car": car})
        make_run(tmp_path, "rmi", seed, 0.6, figures={"test/IoU/sky": sky + 0.05, "test/IoU/car": car - 0.05})
    return tmp_path


def check_latex(text: str) -> None:
    """What TeX would stop at: braces, environments, numbers of cells, bare special characters."""
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert lines
    for line in lines:
        assert len(re.findall(r"(?<!\\)&", line)) + 1 == len(columns.group(1)), line
    outside_math = re.sub(r"\$[^$]*\$", "", bare)
    assert not re.search(r"[%#~_^]", outside_math), "a special character without its backslash"
    assert text.isascii()


def test_latex_is_sound(folder: Path, make_run: MakeRun) -> None:
    make_run(folder, r"50% of_all & {x} ~^\ $<|>", 1, 0.7, commit="other")
    text = as_text(compared(folder), "latex")
    check_latex(text)
    assert r"test/mIoU (\%)" in text
    assert r"60.00 $\pm$ 0.00" in text
    assert r"\textbf{70.00}" in text
    assert r"50\% of\_all \& \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$\textless{}" in text


def test_a_line_that_begins_with_a_bracket_is_no_argument_of_the_one_before() -> None:
    assert "\n{[1, 2]} & x" in as_latex(Table("t", pd.DataFrame({"a": ["[1, 2]"], "b": ["x"]})))


def test_classes_by_hand(folder: Path) -> None:
    cells = class_table(compared(folder)).cells
    assert cells.columns.tolist() == ["class", "ce", "rmi"]
    assert cells.to_numpy().tolist() == [
        ["sky", "85.00 ± 7.07", "90.00 ± 7.07 (+5.00)"],
        ["car", "15.00 ± 7.07", "10.00 ± 7.07 (-5.00)"],
    ]


def test_classes_of_each_table_differ_from_their_own_baseline(folder: Path, make_run: MakeRun) -> None:
    for row, sky in (("ce", 0.5), ("rmi", 0.6)):
        make_run(folder, row, 1, 0.5, table="u", figures={"test/IoU/sky": sky, "test/IoU/car": 0.1})
    make_run(folder, "late", 1, None, table="u")
    cells = class_table(compared(folder)).cells
    assert cells.columns.tolist() == ["class", "t/ce", "t/rmi", "u/ce", "u/rmi"]
    assert cells.iloc[0].tolist() == ["sky", "85.00 ± 7.07", "90.00 ± 7.07 (+5.00)", "50.00", "60.00 (+10.00)"]


def test_classes_in_every_format(folder: Path, make_run: MakeRun) -> None:
    make_run(folder, "late", 1, None)
    rows = compared(folder)
    assert "| sky | 85.00 ± 7.07 | 90.00 ± 7.07 (+5.00) |" in as_text(rows, "md", per_class=True)
    assert r"sky & 85.00 $\pm$ 7.07 &" in as_text(rows, "latex", per_class=True)
    assert "90.00 ± 7.07 (+5.00)" in as_text(rows, "table", per_class=True)
    lines = list(csv.DictReader(io.StringIO(as_text(rows, "csv", per_class=True))))
    assert len(lines) == 8
    assert [float(line["IoU"]) for line in lines[:2]] == [0.8, 0.1]


def test_a_class_may_be_called_as_a_column_is(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "ce", 1, 0.5, figures={"test/IoU/table": 0.25, "test/IoU/row": 0.75})
    lines = list(csv.DictReader(io.StringIO(as_text(compared(tmp_path), "csv", per_class=True))))
    assert [(line["row"], line["class"], line["IoU"]) for line in lines] == [
        ("ce", "table", "0.25"),
        ("ce", "row", "0.75"),
    ]


def test_the_best_is_the_highest_score_or_the_lowest_loss() -> None:
    means = pd.Series([0.5, 0.7], index=["a", "b"])
    assert (best(means, "test/mIoU"), best(means, "test/loss")) == ("b", "a")


def test_a_count_is_no_score() -> None:
    assert unit_of("train/memory_seen_classes").number(11.0) == "11.000"
    assert unit_of("train/memory_momentum").number(0.9) == "0.900"
    assert unit_of("lr-SGD/head/decay").number(0.01) == "0.010"


def test_the_name_of_a_class_does_not_tell_what_is_measured() -> None:
    means = pd.Series([0.5, 0.7], index=["a", "b"])
    assert best(means, "test/IoU/loss") == best(means, "test/IoU/floss") == "b"
    assert unit_of("test/IoU/images").number(0.5) == "50.00"


def test_without_classes(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "ce", 1, 0.5)
    with pytest.raises(UserError, match="no run has logged a test/IoU/<class>: --per-class needs runs"):
        compare([tmp_path], per_class=True)


def test_a_bar_in_a_name_keeps_markdown_in_columns(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "a|b", 1, 0.5)
    line = as_text(compared(tmp_path), "md").splitlines()[2]
    assert line.startswith(r"| a\|b |")


def test_three_hundred_rows(tmp_path: Path, make_run: MakeRun) -> None:
    for index in range(300):
        make_run(tmp_path, f"row{index:03}", 1, index / 1000, axes={"loss": "ce" if index == 0 else "rmi", "df": index})
    rows = compared(tmp_path)
    for format in ("table", "md", "latex", "csv"):
        assert "row299" in as_text(rows, format)
    write_report(rows, tmp_path / "report.html")
    assert "row299" in (tmp_path / "report.html").read_text()


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, plot, table = tmp_path / "p.html", tmp_path / "p.png", tmp_path / "t.tex"
    words = [str(folder), "--per-class", "--strict", "--html", str(page), "--plot", str(plot)]
    main(["compare", *words, "--format", "latex", "--output", str(table)])
    assert all(file.stat().st_size > 500 for file in (page, plot, table))
    assert "Report written to" in capsys.readouterr().out
