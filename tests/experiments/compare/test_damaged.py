"""Runs with damaged files: named, left out and counted, while everything else is compared."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beyondpixel.experiments.compare.command import as_text, compare
from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.compare.rows import compare_runs
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run.folder import RunFolder, find_runs

FILES = ("run.json", "state.json", "summary.json", "config.yaml", "confusion.npz", "test_images.npz")
DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "binary": lambda content: bytes(range(128, 256)) * 4,
    "list": lambda content: b"[1, 2]",
    "text": lambda content: b'"text"',
}


@pytest.fixture
def folder(tmp_path: Path, make_run: Callable[..., Any]) -> Path:
    target = np.full((4, 3), 10)
    for row, hits in (("ce", 5), ("rmi", 6), ("bce", 4)):
        for seed in (1, 2):
            counts = (np.full((4, 3), hits), np.full((4, 3), hits), target)
            config = {"data": {"init_args": {"root": "/data"}}}
            evaluations = (
                {"crf:5": 0.61} if (row, seed) == ("rmi", 1) else None
            )  # of a damaged run they are left out, too
            run = make_run(tmp_path, row, seed, hits / 10, counts=counts, config=config, evaluations=evaluations)
            np.savez(run.confusion_file, matrix=np.eye(3), class_names=["sky", "tree", "car"])
    return tmp_path


def test_a_copy_of_a_run_counts_once(folder: Path) -> None:
    for run in find_runs(folder):
        run.record = {**run.record, "wandb_id": f"{run.record['row']}{run.record['seed']}"}
    original = folder / "t" / "rmi" / "seed1"
    copy = original.with_name("seed1_copy")
    shutil.copytree(original, copy)
    runs = read_runs([folder])
    assert runs.frame["row"].tolist().count("rmi") == 2
    assert runs.frame["row"].tolist().count("rmi + crf:5") == 1
    assert runs.damaged == [f"{copy}: a copy of the run {original}, which would count twice"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_one_damaged_file(folder: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "t" / "rmi" / "seed1" / name
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    comparison = compare_runs(read_runs([folder]), "test/mIoU")
    rows = comparison.rows.set_index("row")
    if (name, damage) == ("config.yaml", "cut"):
        return  # half of a config may be a config
    (found,) = comparison.damaged
    assert "t/rmi/seed1" in found
    assert rows.loc["rmi", "n"] + rows.loc["rmi", "unfinished"] == 1
    assert rows.loc["bce", "n"] == 2
    assert rows.loc["bce", "difference"] == pytest.approx(-0.1)
    compare([folder], format="md")
    assert f"1 damaged run left out: {folder / 't' / 'rmi' / 'seed1'}" in capsys.readouterr().out


def test_a_damaged_evaluation_leaves_its_training(folder: Path, make_run: Callable[..., Any]) -> None:
    make_run(folder, "rmi", 1, 0.6, evaluations={"crf:5": 0.61, "crf:1": 0.62})
    (folder / "t" / "rmi" / "seed1" / "evaluations" / "crf-5" / "summary.json").write_text("{")
    comparison = compare_runs(read_runs([folder]), "test/mIoU")
    assert comparison.rows["row"].tolist() == ["ce", "bce", "rmi", "rmi + crf:1"]
    assert "crf-5" in comparison.damaged[0]


def test_an_evaluation_is_no_baseline_even_if_its_training_is_damaged(
    folder: Path, make_run: Callable[..., Any]
) -> None:
    for seed in (1, 2):
        run = make_run(folder, "ce", seed, 0.5, evaluations={"crf:5": 0.51})
        run.images_file("test").write_bytes(b"")
        np.savez(run.confusion_file, matrix=np.eye(3), class_names=["sky", "tree", "car"])
    rows = compare_runs(read_runs([folder]), "test/mIoU").rows.set_index("row")
    assert "ce" not in rows.index
    assert not rows["is_baseline"].any()
    assert rows["difference"].isna().all()


def test_named_once_over_several_tables(folder: Path, make_run: Callable[..., Any]) -> None:
    make_run(folder, "ce", 1, 0.4, table="u")
    (folder / "t" / "rmi" / "seed1" / "summary.json").write_text("")
    comparison = compare_runs(read_runs([folder]), "test/mIoU")
    assert [len(comparison.table(name).damaged) for name in comparison.tables] == [0, 1]
    assert as_text(comparison).count("damaged run") == 1


def test_nothing_but_damaged_runs(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    run = make_run(tmp_path, "ce", 1, 0.4)
    (run.path / "run.json").write_text("")
    with pytest.raises(UserError, match=r"no run below .* can be read:\n  .*t/ce/seed1"):
        read_runs([tmp_path])


def test_a_queued_run_is_unfinished_and_not_damaged(folder: Path) -> None:
    run = RunFolder(folder / "t" / "rmi" / "seed3")
    axes = {"loss": "rmi", "seed": 3}
    # what the launcher writes
    run.record = {"table": "t", "row": "rmi", "seed": 3, "axes": axes, "reference": {}, "evaluations": []}
    run.config = {
        "seed_everything": 3,
        "model": {"class_path": "a.DeepLabModule", "init_args": {"loss": "rmi"}},
        "data": {"class_path": "a.CamVidDataModule", "init_args": {}},
    }
    run.update_state(status="queued")
    comparison = compare_runs(read_runs([folder]), "test/mIoU")
    assert comparison.damaged == []
    assert comparison.rows.set_index("row").loc["rmi", ["n", "unfinished"]].tolist() == [2, 1]
