"""Published results: what is refused, what is written, and tables that are made from it."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from beyondpixel.experiments.checksums import checksum
from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.compare.rows import compare_runs
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.image_counts import ImageCounts
from beyondpixel.experiments.publish import publish
from beyondpixel.experiments.publish_tables import update_tables
from beyondpixel.experiments.run.folder import RunFolder, find_runs

PACKAGES = {"torch": "2.9.0"}
REPOSITORY = Path(__file__).parents[2]
ENCODER_RATE = "lr-AdamW/encoder/decay"


def save_confusion(run: RunFolder, hits: int) -> None:
    np.savez(run.confusion_file, matrix=[[hits, 100 - hits], [0, 200]], class_names=["a", "b"])


def make_run(
    folder: Path, row: str, seed: int, hits: int, *, commit: str | None = "abc", published: float = 0
) -> RunFolder:
    run = RunFolder(folder / "t" / row / f"seed{seed}")
    reference = {"metric": "test/mIoU", "value": published, "source": "a paper", "deviations": "half the size"}
    run.record = {
        "table": "t",
        "row": row,
        "seed": seed,
        "axes": {"loss": row, "seed": seed},
        "reference": reference if published else {},
        "git_commit": commit,
        "data": {"fingerprint": "f00d", "batch_size": 8},
        "environment": {"python": "3.12.1", "packages": PACKAGES, "accelerators": [], "device": "Some CPU (R) 9"},
        "files": ["/home/me/row.yaml"],
    }
    run.config = {"seed_everything": seed, "data": {"init_args": {"root": "/home/me/CamVid"}}}
    run.update_state(status="done", step=100)
    # 20 steps of 8 images at 4, and 20 at 16 images a second: 40 s and 10 s
    for step, speed in ((19, 4.0), (39, 16.0)):
        run.append_metrics({"train/loss": 1.0, "train/images_per_s": speed}, step=step)
    run.append_metrics({"val/mIoU": 0.3}, step=39)
    predicted = np.full((3, 1), hits)
    ImageCounts(np.array(["a", "b", "c"]), predicted, predicted, np.full((3, 1), 100)).save(run.images_file("test"))
    save_confusion(run, hits)
    run.summary = {"test/mIoU": hits / 100, "test/boundary_F": 0.3, "val/mIoU": 0.35, "train/peak_memory_mb": 321.0}
    run.last_checkpoint.parent.mkdir()
    torch.save({"weight": torch.full((2,), hits)}, run.last_checkpoint)
    (run.path / "log.txt").write_text("secret")
    return run


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    for seed, hits in ((1, 40), (2, 44)):
        make_run(tmp_path / "outputs", "ce", seed, hits, published=58.5)
        run = make_run(tmp_path / "outputs", "rmi", seed, hits + 5)
        evaluation = RunFolder(run.path / "evaluations" / "crf-5")
        evaluation.record = {"evaluation": {"words": "crf:5", "postprocess": "crf:5", "checkpoint": "0f0f"}}
        evaluation.summary = {"test/mIoU": (hits + 6) / 100}
        save_confusion(evaluation, hits + 6)
    return tmp_path / "outputs"


def test_what_is_written(outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = publish([outputs], results=tmp_path / "results")
    assert capsys.readouterr().out == f"Results written to {folder}\n"
    assert folder.parent == tmp_path / "results" / "t"
    assert folder.name.endswith("_some-cpu-r-9")
    lines = list(csv.DictReader((folder / "runs.csv").open()))
    assert [(line["row"], line["seed"], line["test/mIoU"]) for line in lines] == [
        ("ce", "1", "0.4"),
        ("ce", "2", "0.44"),
        ("rmi", "1", "0.45"),
        ("rmi", "2", "0.49"),
        ("rmi + crf:5", "1", "0.46"),
        ("rmi + crf:5", "2", "0.5"),
    ]
    first = lines[0]
    assert first["checkpoint"] == checksum(outputs / "t" / "ce" / "seed1" / "checkpoints" / "last.ckpt")
    assert len({line["checkpoint"] for line in lines[:4]}) == 4
    assert lines[4]["checkpoint"] == "0f0f"
    assert lines[4]["seconds"] == "50.0"  # of the training
    assert [first[name] for name in ("steps", "seconds", "peak_memory_mb")] == ["100", "50.0", "321.0"]
    assert [first[name] for name in ("commit", "data_fingerprint", "published_percent")] == ["abc", "f00d", "58.5"]
    assert (first["val/mIoU"], first["test/boundary_F"]) == ("0.35", "0.3")
    assert (float(first["row_low"]), float(first["row_high"])) == pytest.approx((0.40, 0.44))
    files = {file.name for file in folder.rglob("*") if file.is_file()}
    assert files == {
        "runs.csv",
        "config.yaml",
        "run.json",
        "state.json",
        "metrics.jsonl",
        "summary.json",
        "confusion.npz",
        "test_images.npz",
    }
    with np.load(folder / "rmi" / "seed2" / "evaluations" / "crf-5" / "confusion.npz") as saved:
        assert saved["matrix"].tolist() == [[50, 50], [0, 200]]
    copy = RunFolder(folder / "ce" / "seed1")
    assert (copy.config["data"]["init_args"]["root"], copy.record["files"]) == ("CamVid", ["row.yaml"])


def test_steps_over_several_batches_took_as_many_images(outputs: Path, tmp_path: Path) -> None:
    for folder in (outputs / "t").glob("*/seed*"):
        run = RunFolder(folder)
        run.config = {**run.config, "trainer": {"accumulate_grad_batches": 2}}
    (folder,) = publish([outputs], results=tmp_path / "results")
    assert {line["seconds"] for line in csv.DictReader((folder / "runs.csv").open())} == {"100.0"}


def test_every_interval_is_recomputed_from_what_is_published(outputs: Path, tmp_path: Path) -> None:
    (folder,) = publish([outputs], results=tmp_path / "results")
    ours, theirs = (compare_runs(read_runs([place]), "test/mIoU").rows for place in (outputs, folder))
    columns = ["row", "n", "mean", "low", "high", "difference", "difference_low", "difference_high"]
    assert ours[columns].equals(theirs[columns])
    assert theirs["difference_low"].notna().any()


@pytest.mark.parametrize(
    ("commit", "message"),
    [
        ("abc-dirty", "bce/seed1: uncommitted changes in the code"),
        (None, "bce/seed1: commit unknown"),
        ("def", "t/bce: commit def instead of abc"),
    ],
)
def test_what_is_refused_unless_a_reason_is_named(
    outputs: Path, tmp_path: Path, commit: str | None, message: str
) -> None:
    make_run(outputs, "bce", 1, 41, commit=commit)
    for allow in (None, ""):
        with pytest.raises(UserError, match=message) as told:
            publish([outputs], results=tmp_path / "results", allow=allow)
        assert str(told.value).count("uncommitted") == message.count("uncommitted")  # told once
    assert not (tmp_path / "results").exists()
    (folder,) = publish([outputs], results=tmp_path / "results", allow="a docstring alone")
    assert {line["allowed"] for line in csv.DictReader((folder / "runs.csv").open())} == {"a docstring alone"}


def test_damaged_runs_are_refused_and_unfinished_ones_left_out(outputs: Path, tmp_path: Path) -> None:
    run = make_run(outputs, "bce", 1, 41)
    run.summary = {}
    (folder,) = publish([outputs], results=tmp_path / "results")
    assert not (folder / "bce").exists()
    (run.path / "summary.json").write_text("")
    with pytest.raises(UserError, match="damaged: .*bce/seed1"):
        publish([outputs], results=tmp_path / "more")


def test_runs_that_wait_are_left_out(outputs: Path, tmp_path: Path) -> None:
    for table in ("t", "u"):
        run = RunFolder(outputs / table / "bce" / "seed1")
        run.record = {"table": table, "row": "bce", "seed": 1, "axes": {"loss": "bce"}}
        run.config = {"model": {"class_path": "a.Model"}, "data": {"class_path": "a.Data"}}
    (folder,) = publish([outputs], results=tmp_path / "results")
    assert folder.parent.name == "t"
    assert not (folder / "bce").exists()


def test_nothing_is_overwritten(outputs: Path, tmp_path: Path) -> None:
    publish([outputs], results=tmp_path / "results", machine="gpu")
    with pytest.raises(UserError, match="_gpu exists; remove it, or name another machine"):
        publish([outputs], results=tmp_path / "results", machine="gpu")


def test_tables_are_those_of_the_results(outputs: Path, tmp_path: Path) -> None:
    publish([outputs], results=tmp_path / "results", machine="gpu")
    page, other = tmp_path / "README.md", tmp_path / "other.md"
    page.write_text("before\n<!-- results: t test/boundary_F -->\nold\n<!-- /results -->\nafter\n")
    other.write_text("no table\n")
    with pytest.raises(UserError, match="tables differ from .*: .*README.md; run"):
        update_tables([page, other], results=tmp_path / "results", check=True)
    assert update_tables([page, other], results=tmp_path / "results") == [page]
    lines = page.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[2] == (
        "| row | ours, test/mIoU (%) | n | Δ baseline | 95 % interval | paper’s (%) | ours − paper’s | "
        "boundary_F (%) | known deviations |"
    )
    assert lines[4] == "| ce | 42.00 ± 2.83 | 2 | – | – | 58.50 | -16.50 | 30.00 ± 0.00 | half the size |"
    assert lines[5] == "| rmi | 47.00 ± 2.83 | 2 | +5.00 | [+1.00, +9.00] | – | – | 30.00 ± 0.00 | – |"
    assert lines[6] == "| rmi + crf:5 | 48.00 ± 2.83 | 2 | +6.00 | – | – | – | – | – |"
    assert lines[-3].startswith("Data: `results/t/")
    assert lines[-1] == "after"
    assert update_tables([page], results=tmp_path / "results", check=True) == []


def test_a_marker_names_its_baseline(outputs: Path, tmp_path: Path) -> None:
    publish([outputs], results=tmp_path / "results", machine="gpu")
    page = tmp_path / "README.md"
    page.write_text("<!-- results: t baseline=rmi test/boundary_F -->\n<!-- /results -->\n")
    update_tables([page], results=tmp_path / "results")
    lines = page.read_text().splitlines()
    assert lines[3].startswith("| rmi | 47.00 ± 2.83 | 2 | – |")
    assert lines[4].startswith("| ce | 42.00 ± 2.83 | 2 | -5.00 | [-9.00, -1.00] |")
    assert "boundary_F (%)" in lines[1]


def test_a_marker_names_its_rows(outputs: Path, tmp_path: Path) -> None:
    """The rows that are shown come with their evaluations; one that is not there is an error."""
    publish([outputs], results=tmp_path / "results", machine="gpu")
    page = tmp_path / "README.md"
    page.write_text("<!-- results: t rows=rmi test/boundary_F -->\n<!-- /results -->\n")
    update_tables([page], results=tmp_path / "results")
    table = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert [line.split()[1] for line in table[2:]] == ["rmi", "rmi"]
    assert "crf:5" in table[3]
    page.write_text("<!-- results: t rows=rmi,ohem -->\n<!-- /results -->\n")
    with pytest.raises(UserError, match=r"no results of the rows ohem in .*; it has ce, rmi"):
        update_tables([page], results=tmp_path / "results")


def test_results_of_several_days_are_one_table(outputs: Path, tmp_path: Path) -> None:
    publish([outputs], results=tmp_path / "results", machine="first")
    later = tmp_path / "later"
    make_run(later, "rmi", 2, 60)  # again
    make_run(later, "bce", 1, 41)
    (folder,) = publish([later], results=tmp_path / "results", machine="second")
    page = tmp_path / "README.md"
    page.write_text("<!-- results: t -->\n<!-- /results -->\n")
    update_tables([page], results=tmp_path / "results")
    cells = [[cell.strip() for cell in line.split("|")] for line in page.read_text().splitlines()]
    scores = {line[1]: (line[2], line[3]) for line in cells if len(line) > 3}
    assert scores["ce"] == ("42.00 ± 2.83", "2")
    assert scores["bce"] == ("41.00", "1")
    assert scores["rmi"] == (f"{(45 + 60) / 2:.2f} ± {15 / 2**0.5:.2f}", "2")
    assert f"_first`, `results/t/{folder.name}`" in page.read_text()


def test_tables_of_this_repository_are_those_of_its_results() -> None:
    pages = [file for folder in (".", "docs", "experiments") for file in (REPOSITORY / folder).glob("*.md")]
    assert REPOSITORY / "README.md" in pages
    update_tables(pages, results=REPOSITORY / "results", check=True)


def test_a_page_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*READNE\.md"):
        update_tables([tmp_path / "READNE.md"])


def test_a_table_without_results(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- results: nothing -->\n<!-- /results -->\n")
    with pytest.raises(UserError, match="no results of nothing in .*; publish them with"):
        update_tables([page], results=tmp_path / "results")


def test_published_runs_trained_at_the_rate_that_their_axis_names() -> None:
    """What the learning rate's monitor logged of the encoder, whose rate is the axis, against the record."""
    runs = [run for run in find_runs(REPOSITORY / "results") if run.record["table"].startswith("camvid_small_adamw")]
    assert len(runs) > 12
    for run in runs:
        logged = [value for line in run.metrics() for name, value in line.items() if name == ENCODER_RATE]
        assert max(logged) == pytest.approx(run.record["axes"]["lr"]), run.path
        assert run.record["axes"]["optimizer"] == "adamw", run.path
