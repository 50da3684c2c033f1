"""The run folder: atomic writes, damage, evaluations, what may be resumed or replaced."""

import json
import os
from pathlib import Path

import pytest
import torch

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.resume import checkpoint_to_resume
from beyondpixel.experiments.run.folder import DamagedRunError, RunFolder, Status, find_runs, write_atomically

CONFIG = {"model": {"init_args": {"lr": 0.1}}, "trainer": {"max_steps": 5}}


def unfinished(path: Path) -> RunFolder:
    run = RunFolder(path)
    run.config = CONFIG
    run.update_state(status=Status.STOPPED, step=3)
    run.last_checkpoint.parent.mkdir()
    torch.save({"state_dict": {}, "hyper_parameters": {}}, run.last_checkpoint)
    return run


def test_a_crash_while_writing_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.json"
    write_atomically(file, "old")

    def crash(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, "new and longer")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_state_keeps_what_is_not_changed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.update_state(status="running", max_steps=10)
    run.update_state(step=4)
    assert json.loads((tmp_path / "run" / "state.json").read_text()) == {
        "status": "running",
        "max_steps": 10,
        "step": 4,
    }


def test_metrics_survive_a_line_cut_short(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    sizes = [run.metrics_size]
    for step in (10, 20, 30):
        run.append_metrics({"train/loss": step / 10}, step=step)
        sizes.append(run.metrics_size)
    with run.metrics_file.open("a") as file:
        file.write('{"step": 40, "train/lo')
    assert [line["train/loss"] for line in run.metrics()] == [1.0, 2.0, 3.0]
    run.cut_metrics(sizes[2])
    run.append_metrics({"train/loss": 9.0}, step=25)
    assert [(line["step"], line["train/loss"]) for line in run.metrics()] == [(10, 1.0), (20, 2.0), (25, 9.0)]


def test_runs_are_found_below_a_folder_and_counted_as_people_do(tmp_path: Path) -> None:
    for name in ("t/b/seed1", "t/a/seed10", "t/a/seed1", "t/a/seed2"):
        RunFolder(tmp_path / name).record = {"name": name}
    (tmp_path / "t" / "notes").mkdir()
    assert [run.record["name"] for run in find_runs(tmp_path)] == ["t/a/seed1", "t/a/seed2", "t/a/seed10", "t/b/seed1"]


def test_runs_in_linked_folders_are_found_once(tmp_path: Path) -> None:
    """Tables are often on another disk; a link may also lead upwards, or to a run that is there anyway."""
    for path in ("here/a/seed1", "disk/b/seed1"):
        RunFolder(tmp_path / path).record = {"name": path}
    (tmp_path / "here" / "b").symlink_to(tmp_path / "disk" / "b")
    (tmp_path / "here" / "a" / "up").symlink_to(tmp_path / "here")
    (tmp_path / "here" / "c").symlink_to(tmp_path / "here" / "a")
    found = [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path / "here")]
    assert sorted(found) == ["here/a/seed1", "here/b/seed1"]


def test_a_fresh_folder_starts_from_nothing(tmp_path: Path) -> None:
    assert checkpoint_to_resume(RunFolder(tmp_path), CONFIG) is None


def test_an_unfinished_run_resumes(tmp_path: Path) -> None:
    run = unfinished(tmp_path)
    assert checkpoint_to_resume(run, CONFIG) == run.last_checkpoint


def test_an_unfinished_run_of_another_config_is_not_mixed_up(tmp_path: Path) -> None:
    run = unfinished(tmp_path)
    changed = {**CONFIG, "model": {"init_args": {"lr": 0.2}}}
    with pytest.raises(
        UserError, match=r"unfinished run of another config \(model\.init_args\.lr was 0\.1 and is 0\.2\)"
    ):
        checkpoint_to_resume(run, changed)
    assert run.last_checkpoint.exists()


@pytest.mark.parametrize("status", [Status.TRAINED, Status.DONE])
def test_a_finished_run_is_kept_unless_overwritten(tmp_path: Path, status: Status) -> None:
    run = unfinished(tmp_path)
    run.update_state(status=status)
    mine, skipped = tmp_path / "my_notes.txt", tmp_path / "skipped_files.txt"
    mine.write_text("not the run's")
    skipped.write_text("masks/train/a.png: is not an image\n")  # which may be repaired before the next run
    with pytest.raises(UserError, match="holds a finished run, which is kept; add --overwrite"):
        checkpoint_to_resume(run, CONFIG)
    run.clear()
    assert run.state == {"status": "new"}
    assert not run.last_checkpoint.exists()
    assert not skipped.exists()
    assert mine.exists()


def test_where_data_lie_is_no_other_config(tmp_path: Path) -> None:
    run = unfinished(tmp_path)
    run.config = {**CONFIG, "data": {"init_args": {"root": "/old/place"}}}
    moved = {**CONFIG, "data": {"init_args": {"root": "/new/place"}}}
    assert checkpoint_to_resume(run, moved) == run.last_checkpoint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b""),
        ("state.json", b"[1]"),
        ("state.json", b'{"status": "nearly"}'),
        ("run.json", b'{"name": '),
        ("run.json", b"\xff\xfe\x00"),
        ("summary.json", b"3"),
        ("config.yaml", b"a: [1"),
        ("config.yaml", b"\x00\x01\x02"),
        ("config.yaml", b"- 1"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    run = unfinished(tmp_path)
    assert (run.status, run.damage) == (Status.STOPPED, None)
    (tmp_path / name).write_bytes(content)
    assert run.status is Status.DAMAGED
    assert run.damage is not None
    assert run.damage.startswith(f"{tmp_path / name} is damaged (")
    assert "restore it from a copy, or remove" in run.damage


def test_a_damaged_state_can_be_written_anew(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / "state.json").write_bytes(b"")
    with pytest.raises(DamagedRunError):
        _ = run.state
    run.update_state(status=Status.FAILED, error="disk full")
    assert (run.status, run.state["error"]) == (Status.FAILED, "disk full")


def test_evaluations_are_no_runs_of_their_own(tmp_path: Path) -> None:
    run = unfinished(tmp_path / "t" / "r" / "seed1")
    run.record = {"name": "t/r"}
    for words in ("crf-10", "crf-5"):
        RunFolder(run.path / "evaluations" / words).record = {"evaluation": {"words": words.replace("-", ":")}}
    assert [found.path for found in find_runs(tmp_path)] == [run.path]
    assert [found.record["evaluation"]["words"] for found in run.evaluations()] == ["crf:5", "crf:10"]
    run.clear()
    assert run.evaluations() == []


def test_what_killed_writes_left_is_removed(tmp_path: Path) -> None:
    run = unfinished(tmp_path)
    leftovers = [tmp_path / ".state.json.x1y2.part", tmp_path / "checkpoints" / ".last.ckpt.part"]
    for file in leftovers:
        file.write_bytes(b"half")
    run.remove_temporary_files()
    assert not any(file.exists() for file in leftovers)
    assert run.last_checkpoint.exists()


def test_a_folder_that_is_removed_meanwhile_has_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = unfinished(tmp_path / "a")
    kept.record = {"name": "a"}
    (tmp_path / "b").mkdir()
    scandir = os.scandir

    def vanishing(path: str) -> object:
        if Path(path).name == "b":
            (tmp_path / "b").rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert [run.path for run in find_runs(tmp_path)] == [kept.path]
