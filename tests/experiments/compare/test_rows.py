"""Comparison tables, against figures worked out by hand."""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from beyondpixel.experiments.compare.command import as_text, compare
from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.compare.rows import Comparison, compare_runs
from beyondpixel.experiments.compare.tables import as_csv, as_markdown, main_table
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run.folder import RunFolder

MakeRun = Callable[..., RunFolder]
SCORES = {"ce": [0.40, 0.42], "bce": [0.38, 0.39], "rmi": [0.44, 0.44, 0.47]}


@pytest.fixture
def folder(tmp_path: Path, make_run: MakeRun) -> Path:
    for row, scores in SCORES.items():
        for seed, score in enumerate(scores, start=1):
            make_run(tmp_path, row, seed, score, published=61.11 if row == "rmi" else None)
    make_run(tmp_path, "ce", 3, None)
    return tmp_path


def compared(*folders: Path, metric: str = "test/mIoU", **options: Any) -> Comparison:
    return compare_runs(read_runs(folders), metric, **options)


def by_name(*folders: Path, **options: Any) -> dict[str, Any]:
    return {row["row"]: row for row in compared(*folders, **options).rows.to_dict("records")}


def test_mean_spread_and_difference(folder: Path) -> None:
    rows = by_name(folder)
    assert rows["ce"]["mean"] == pytest.approx(0.41)
    assert rows["ce"]["std"] == pytest.approx(0.0141421356)  # (0.42 - 0.40) / sqrt(2)
    assert (math.isnan(rows["ce"]["difference"]), rows["ce"]["unfinished"]) == (True, 1)
    assert rows["rmi"]["std"] == pytest.approx(0.0173205081)  # sqrt((1² + 1² + 2²) / 2) / 100
    assert rows["rmi"]["difference"] == pytest.approx(0.04)
    assert rows["bce"]["difference"] == pytest.approx(-0.025)


def test_another_baseline(folder: Path) -> None:
    rows = by_name(folder, baseline="rmi")
    assert rows["ce"]["difference"] == pytest.approx(-0.04)
    assert math.isnan(rows["rmi"]["difference"])


def test_markdown_shows_percent_and_only_axes_that_differ(folder: Path) -> None:
    lines = as_markdown(main_table(compared(folder))).splitlines()
    assert (
        lines[0] == "| row | loss | test/mIoU (%) | range | n | Δ baseline | 95 % interval | published (%) | images/s |"
    )
    assert "| rmi | rmi | 45.00 ± 1.73 | 44.00 … 47.00 | 3 | +4.00 | – | 61.11 | 20.0 |" in lines
    assert "| ce | ce | 41.00 ± 1.41 | 40.00 … 42.00 | 2 (+1 unfinished) | – | – | – | 15.0 |" in lines


def test_further_figures_have_a_column_each(tmp_path: Path, make_run: MakeRun) -> None:
    for seed, (fine, seconds) in enumerate([(0.30, 0.010), (0.34, 0.030), (0.35, 0.080)], start=1):
        figures = {"test/boundary_F": fine, "test/seconds_per_image": seconds}
        make_run(tmp_path, "ce", seed, 0.4, figures=figures)
    make_run(tmp_path, "rmi", 1, 0.5, figures={"test/boundary_F": 0.4})
    further = ["test/boundary_F", "test/seconds_per_image"]
    comparison = compared(tmp_path, also=further)
    cells = main_table(comparison).cells[["boundary_F (%)", "seconds_per_image"]].to_numpy().tolist()
    # sqrt((3² + 1² + 2²) / 2) and sqrt((0.03² + 0.01² + 0.04²) / 2)
    assert cells == [["33.00 ± 2.65", "0.040 ± 0.036"], ["40.00", "–"]]
    lines = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert [line["test/boundary_F"] for line in lines] == ["0.3", "0.34", "0.35", "0.4"]
    assert [line["test/seconds_per_image"] for line in lines] == ["0.01", "0.03", "0.08", ""]
    with pytest.raises(UserError, match="no run has a test/boundary_G yet; available scores: test/boundary_F, test/m"):
        compared(tmp_path, also=["test/boundary_F", "test/boundary_G"])


MCIBI = {"memory": "features", "refinement": True, "slots": 1, "consistency": False, "model": "mcibi_deeplabv3"}


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        # an axis of RMI or of a memory gets a column where rows that have it differ, not for being there
        ({"ce": {}, "rmi": {}}, ["loss"]),
        ({"rmi": {}, "rmi_df": {"loss": "rmi", "df": 2}}, ["df"]),
        ({"ce": {}, "rmi": {}, "rmi_df": {"loss": "rmi", "df": 2}}, ["loss", "df"]),
        ({"ce": {}, "mcibi": {"loss": "ce", **MCIBI}}, ["model", "memory"]),
        ({"plain": {"loss": "ce"}, "mcibi": MCIBI, "two": {**MCIBI, "slots": 2}}, ["model", "memory", "slots"]),
        ({"mcibi": MCIBI, "consistent": {**MCIBI, "consistency": True}}, ["consistency"]),
        # in the order of axes.py whatever order the runs have them in; those of a user's own, last
        ({"ce": {"own": 1}, "late": {"lr": 0.2, "context": "ppm", "loss": "ce", "own": 2}}, ["context", "lr", "own"]),
    ],
)
def test_axes_that_get_a_column(
    tmp_path: Path, make_run: MakeRun, rows: dict[str, dict[str, Any]], shown: list[str]
) -> None:
    for row, axes in rows.items():
        make_run(tmp_path, row, 1, 0.4, axes={"loss": "ce", **axes} if axes.get("memory") else axes)
    columns = main_table(compared(tmp_path)).cells.columns.tolist()
    assert columns[1 : columns.index("test/mIoU (%)")] == shown


def test_one_seed_has_no_spread(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "ce", 1, 0.5)
    assert main_table(compared(tmp_path)).cells.iloc[0, 1:5].tolist() == ["50.00", "–", "1", "–"]


def test_csv_has_a_line_for_every_run(folder: Path) -> None:
    text = as_csv(compared(folder))
    columns, lines = text.splitlines()[0].split(","), list(csv.DictReader(io.StringIO(text)))
    assert len(columns) == len(set(columns))  # the seed is no axis
    assert len(lines) == 8
    rmi = [line for line in lines if line["row"] == "rmi"]
    assert [line["test/mIoU"] for line in rmi] == ["0.44", "0.44", "0.47"]
    assert {line["df"] for line in rmi} == {"4"}
    assert [line["status"] for line in lines if line["test/mIoU"] == ""] == ["running"]


def test_each_table_has_its_own_baseline(folder: Path, make_run: MakeRun) -> None:
    make_run(folder, "ce", 1, 0.7, table="u")
    make_run(folder, "rmi", 1, 0.6, table="u")
    rows = {(row["table"], row["row"]): row for row in compared(folder).rows.to_dict("records")}
    assert rows["u", "rmi"]["difference"] == pytest.approx(-0.1)
    assert rows["t", "rmi"]["difference"] == pytest.approx(0.04)
    assert [list(rows)[index] for index in main_table(compared(folder)).best] == [("t", "rmi"), ("u", "ce")]


def test_table_in_a_file(folder: Path, tmp_path: Path) -> None:
    compare([folder], format="table", output=tmp_path / "new" / "table.txt")
    assert "45.00 ± 1.73" in (tmp_path / "new" / "table.txt").read_text()


def test_a_narrow_terminal_keeps_the_scores_on_one_line(folder: Path) -> None:
    comparison = compared(folder)
    shown = {
        width: as_text(comparison, per_class=False, console=Console(width=width, file=io.StringIO()))
        for width in (80, 160)
    }
    assert all("45.00 ± 1.73" in text for text in shown.values())
    assert all(len(line) <= width for width, text in shown.items() for line in text.splitlines())
    assert "…" not in shown[80]
    assert "loss" in shown[160]
    assert "loss" not in shown[80]
    narrow = main_table(comparison, narrow=True).cells
    assert list(narrow) == ["row", "test/mIoU (%)", "n", "Δ baseline", "95 % interval", "published (%)"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "val/mIoU"}, "no run has a val/mIoU yet; available scores: test/mIoU"),
        ({"metric": "test/mIoU", "baseline": "xyz"}, "no row named xyz; rows are bce, ce, rmi"),
    ],
)
def test_wrong_questions(folder: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compared(folder, **arguments)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder: .*nowhere"):
        compared(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no runs below .*: expected folders with a run\.json"):
        compared(tmp_path)


def test_the_baseline_comes_first_and_tables_stay_together(folder: Path, make_run: MakeRun) -> None:
    make_run(folder, "ce", 1, 0.7, table="s")
    make_run(folder, "bce", 1, 0.6, table="s")
    rows = compared(folder).rows
    assert list(zip(rows["table"], rows["row"], strict=True))[:3] == [("s", "ce"), ("s", "bce"), ("t", "ce")]


def test_published_numbers_of_another_metric_are_not_shown(folder: Path, make_run: MakeRun) -> None:
    make_run(folder, "ce", 1, 0.4, published=58.5)
    assert by_name(folder)["rmi"]["published_difference"] == pytest.approx(2.61)
    published = main_table(compared(folder)).cells.set_index("row")["published (%)"]
    assert published.to_dict() == {"ce": "58.50", "bce": "–", "rmi": "61.11 (+2.61)"}
    assert math.isnan(by_name(folder, metric="train/images_per_s")["rmi"]["published"])


def test_a_published_number_is_of_the_mean_iou_unless_it_says_otherwise(tmp_path: Path, make_run: MakeRun) -> None:
    boundary = {"test/boundary_F": 0.3}
    run = make_run(tmp_path, "ce", 1, 0.4, figures=boundary, evaluations={"crf:5": 0.41})
    run.record = {**run.record, "reference": {"value": 58.5, "evaluations": {"crf:5": {"value": 59.0}}}}
    (file,) = tmp_path.glob("**/evaluations/*/summary.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **boundary}))
    assert [row["published"] for row in by_name(tmp_path).values()] == [58.5, 59.0]
    assert all(math.isnan(row["published"]) for row in by_name(tmp_path, metric="test/boundary_F").values())
    reference = {**run.record["reference"], "metric": "test/boundary_F"}  # of all its numbers
    run.record = {**run.record, "reference": reference}
    assert [row["published"] for row in by_name(tmp_path, metric="test/boundary_F").values()] == [58.5, 59.0]


def test_a_loss_is_no_percentage_and_the_lowest_is_best(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "ce", 1, 0.4, figures={"test/loss": 0.5})
    make_run(tmp_path, "rmi", 1, 0.5, figures={"test/loss": -0.25})
    table = main_table(compared(tmp_path, metric="test/loss"))
    assert table.cells.columns[2] == "test/loss"
    assert [table.cells.iloc[1, 2], table.cells.iloc[1, 5], table.best] == ["-0.250", "-0.750", [1]]


def test_a_folder_given_twice_counts_once(folder: Path) -> None:
    rows = by_name(folder, folder / "t" / "rmi")
    assert rows["rmi"]["n"] == 3


def test_a_baseline_of_another_table(folder: Path, make_run: MakeRun) -> None:
    make_run(folder, "only", 1, 0.5, table="u", axes={"loss": "rmi"})
    rows = {(row["table"], row["row"]): row for row in compared(folder, baseline="t/ce").rows.to_dict("records")}
    assert rows["u", "only"]["difference"] == pytest.approx(0.09)
    assert rows["t", "rmi"]["difference"] == pytest.approx(0.04)
    assert rows["t", "ce"]["is_baseline"]


def test_a_table_without_the_named_baseline_has_no_differences(folder: Path, make_run: MakeRun) -> None:
    make_run(folder, "only", 1, 0.5, table="u", axes={"loss": "rmi"})
    rows = {(row["table"], row["row"]): row for row in compared(folder, baseline="bce").rows.to_dict("records")}
    assert rows["t", "rmi"]["difference"] == pytest.approx(0.065)
    assert math.isnan(rows["u", "only"]["difference"])


def test_evaluations_are_rows_of_their_own(tmp_path: Path, make_run: MakeRun) -> None:
    for seed, score in ((1, 0.40), (2, 0.44)):
        crf = {"crf:10": score + 0.01, "crf:5": score + 0.02}
        make_run(tmp_path, "ce", seed, score, published=58.5, evaluations=crf, references={"crf:5": 59.0})
    make_run(tmp_path, "rmi", 1, 0.5)
    rows = by_name(tmp_path)
    assert list(rows) == ["ce", "ce + crf:5", "ce + crf:10", "rmi"]
    assert [rows[name]["is_baseline"] for name in rows] == [True, False, False, False]
    assert rows["ce + crf:5"]["mean"] == pytest.approx(0.44)
    assert rows["ce + crf:5"]["difference"] == pytest.approx(0.02)
    assert (rows["ce + crf:5"]["postprocess"], rows["ce"]["postprocess"]) == ("crf:5", None)
    assert "postprocess" not in main_table(compared(tmp_path)).cells  # it is in the row's name
    assert (rows["ce + crf:5"]["published"], rows["ce + crf:5"]["published_difference"]) == (59.0, 0.5)
    assert math.isnan(rows["ce + crf:10"]["published"])


def test_a_published_number_without_steps_is_that_of_all_crfs(tmp_path: Path, make_run: MakeRun) -> None:
    crf = {"crf:1": 0.41, "crf:10": 0.42}
    make_run(tmp_path, "ce", 1, 0.4, evaluations=crf, references={"crf": 59.0, "crf:1": 58.0})
    rows = by_name(tmp_path)
    assert (rows["ce + crf:1"]["published"], rows["ce + crf:10"]["published"]) == (58.0, 59.0)


def test_an_evaluation_has_a_commit_of_its_own(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path, "ce", 1, 0.4, evaluations={"crf:5": 0.41})
    (evaluation,) = run.evaluations()
    evaluation.record = {**evaluation.record, "git_commit": "def"}
    frame = read_runs([tmp_path]).frame.set_index("row")
    assert frame["commit"].to_dict() == {"ce": "abc", "ce + crf:5": "def"}
    assert by_name(tmp_path)["ce + crf:5"]["confounders"] == ["commit def instead of abc"]


def test_published_numbers_of_classes_are_of_the_test(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path, "ce", 1, 0.4, published=58.5, figures={"test/IoU/sky": 0.9, "val/IoU/sky": 0.8})
    run.record = {**run.record, "reference": {**run.record["reference"], "per_class": {"sky": 91.5}}}
    assert by_name(tmp_path, metric="test/IoU/sky")["ce"]["published"] == 91.5
    assert math.isnan(by_name(tmp_path, metric="val/IoU/sky")["ce"]["published"])


def test_no_row_is_the_best_in_speed(folder: Path) -> None:
    assert main_table(compared(folder)).best == [2]
    assert main_table(compared(folder, metric="train/images_per_s")).best == []


def test_the_best_crf_of_each_row_is_named(tmp_path: Path, make_run: MakeRun) -> None:
    for seed, score in ((1, 0.40), (2, 0.44)):
        crf = {"crf:1": score + 0.01, "crf:5": score + 0.02, "crf:10": score - 0.2 + 0.1 * seed}
        make_run(tmp_path, "ce", seed, score, evaluations={**crf, "crf:2": math.nan})
        run = make_run(tmp_path, "rmi", seed, score, evaluations={"crf:5": 0.3, "tta:flip+crf:1": 0.31})
        flipped = RunFolder(run.path / "evaluations" / "tta-flip+crf-1")
        flipped.record = {"evaluation": {**flipped.record["evaluation"], "tta": "flip", "postprocess": "crf:1"}}
    notes = [note for note in main_table(compared(tmp_path)).notes if note.startswith("Best CRF")]
    assert notes == [
        "Best CRF of ce: crf:5 (44.00), of crf:1, crf:5, crf:10; chosen on the images that it is scored on, as in the "
        "papers."
    ]


def test_whole_numbers_stay_whole(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "ce", 1, 0.4)
    make_run(tmp_path, "rmi", 1, 0.5, axes={"df": 4})
    make_run(tmp_path, "rmi_b", 1, 0.5, axes={"loss": "rmi", "df": 2, "crop_size": [180, 240]})
    cells = main_table(compared(tmp_path)).cells
    assert cells["df"].tolist() == ["–", "4", "2"]
    assert cells["crop_size"].tolist() == ["–", "–", "180×240"]
    (line, *_) = [line for line in csv.DictReader(io.StringIO(as_csv(compared(tmp_path)))) if line["row"] == "rmi"]
    assert line["df"] == "4"


def test_a_score_with_the_name_of_an_axis_is_left_out(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    make_run(tmp_path, "ce", 1, 0.5, figures={"loss": 0.7})
    (line,) = compared(tmp_path).runs.to_dict("records")
    assert line["loss"] == "ce"
