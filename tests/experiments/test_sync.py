"""Runs go up, each once: a real process in place of `wandb sync`, and W&B's own with a server of this machine."""

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from beyondpixel.experiments import sync as sync_module
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.sync import sync
from beyondpixel.experiments.wandb_log import write_records

# logs what it is asked to upload and marks it as W&B does; a run named bad fails, one named slow hangs with a child
STAND_IN = """
import json, pathlib, subprocess, sys, time
log = pathlib.Path(sys.argv[1])
for part in map(pathlib.Path, sys.argv[2:]):
    row = part.parts[len(part.parts) - 3 - part.parts[::-1].index("wandb")]
    with log.open("a") as file:
        file.write(json.dumps([row, part.parent.name, time.time()]) + "\\n")
    if row == "bad" and not (log.parent / "mended").exists():
        print("starting\\nthe server says no")
        sys.exit(1)
    if row == "liar":
        sys.exit(0)
    if row == "slow":
        child = subprocess.Popen(["sleep", "600"])
        (log.parent / "child").write_text(str(child.pid))
        time.sleep(600)
    time.sleep(0.3)
    (run,) = part.glob("run-*.wandb")
    run.with_name(run.name + ".synced").touch()
    with log.open("a") as file:
        file.write(json.dumps([row, "end", time.time()]) + "\\n")
"""

CODE: dict[str, Any] = {"git_commit": None, "environment": {}}


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "offline_reason", lambda: None)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in place of `wandb sync`, which logs its calls."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    command = (sys.executable, str(tmp_path / "stand_in.py"), str(tmp_path / "log"))
    monkeypatch.setattr(sync_module, "COMMAND", command)


def make_run(folder: Path, row: str, *, parts: int = 1, status: str = "done", age: float = 0.0) -> RunFolder:
    run = RunFolder(folder / "outputs" / row / "seed1")
    run.config = {}
    run.record = {"name": row, "table": "t", "row": row, "seed": 1, "axes": {}, "wandb_id": "abc"} | CODE
    run.update_state(status=status)
    for part in range(parts):
        place = run.path / "wandb" / f"offline-run-20260101_00000{part}-abc"
        place.mkdir(parents=True)
        log = place / "run-abc.wandb"
        begin, end = wandb_internal_pb2.Record(), wandb_internal_pb2.Record()
        begin.run.run_id, end.exit.exit_code = "abc", 0
        write_records(log, [begin, end])
        os.utime(log, (time.time() - age,) * 2)
    return run


def asked(tmp_path: Path) -> list[list[str]]:
    lines = (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []
    return [line for line in map(json.loads, lines) if line[1] != "end"]


def test_each_run_goes_up_once_and_a_failure_stops_no_other(
    tmp_path: Path, stand_in: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in ("a", "bad", "c"):
        make_run(tmp_path, row)
    with pytest.raises(UserError, match="1 of 3 uploads failed: .*bad/seed1; run the command again to retry them"):
        sync([tmp_path], jobs=1)
    shown = capsys.readouterr().out
    assert "[1/3] " in shown
    assert "a/seed1: uploaded" in shown
    assert "bad/seed1: failed: starting / the server says no" in shown
    assert "c/seed1: uploaded" in shown
    (tmp_path / "mended").touch()
    assert [run.path.parent.name for run in sync([tmp_path])] == ["bad"]
    assert [line[0] for line in asked(tmp_path)] == ["a", "bad", "c", "bad"]
    assert sync([tmp_path]) == []
    assert "Nothing to upload" in capsys.readouterr().out
    assert len(asked(tmp_path)) == 4


def test_parts_of_a_resumed_run_go_up_merged_once(
    tmp_path: Path, stand_in: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "a", parts=3)
    first, second, _ = parts = sorted((run.path / "wandb").iterdir())
    (first / "run-abc.wandb.synced").touch()
    (second / "run-abc.wandb").unlink()  # W&B was killed before it began to write
    sync([tmp_path], dry_run=True)
    assert "a/seed1: would be uploaded (2 part(s))" in capsys.readouterr().out
    sync([tmp_path])
    assert [line[1] for line in asked(tmp_path)] == ["merged"]
    assert all((part / "run-abc.wandb.synced").exists() for part in parts)
    assert sorted((run.path / "wandb").iterdir()) == parts
    assert sync([tmp_path]) == []


def test_of_online_runs_only_those_that_were_cut_off(tmp_path: Path, stand_in: None) -> None:
    names = {"whole": None, "lost": "undelivered", "killed": "run-abc.wandb"}
    for row, changed in names.items():
        run = make_run(tmp_path, row)
        (part,) = (run.path / "wandb").iterdir()
        online = part.rename(part.with_name(part.name.removeprefix("offline-")))
        if changed:
            (online / changed).write_bytes(b"")
    assert sorted(run.path.parent.name for run in sync([tmp_path])) == ["killed", "lost"]


def test_what_was_written_after_its_upload_goes_up_again(tmp_path: Path, stand_in: None) -> None:
    run = make_run(tmp_path, "a")
    mark = run.path / "wandb" / "offline-run-20260101_000000-abc" / "run-abc.wandb.synced"
    mark.touch()
    os.utime(mark, (time.time() - 100,) * 2)
    assert len(sync([tmp_path])) == 1


def test_jobs_run_at_the_same_time(tmp_path: Path, stand_in: None) -> None:
    for row in ("a", "b"):
        make_run(tmp_path, row)
    sync([tmp_path], jobs=2)
    lines = sorted((json.loads(line) for line in (tmp_path / "log").read_text().splitlines()), key=lambda line: line[2])
    assert [line[1] == "end" for line in lines] == [False, False, True, True]  # both had begun before one ended


def test_a_run_that_goes_on_is_left_and_a_killed_one_is_not(
    tmp_path: Path, stand_in: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "going", status="running")
    make_run(tmp_path, "killed", status="running", age=3600)
    assert [run.path.parent.name for run in sync([tmp_path])] == ["killed"]
    assert "going/seed1: still running, skipped" in capsys.readouterr().out


def test_a_damaged_run_stops_no_other(tmp_path: Path, stand_in: None) -> None:
    (make_run(tmp_path, "damaged").path / "state.json").write_text("{")
    make_run(tmp_path, "sound")
    assert {run.path.parent.name for run in sync([tmp_path])} == {"damaged", "sound"}


def test_dry_run_starts_nothing_and_needs_no_network(
    tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sync_module, "offline_reason", lambda: "no API key found")
    make_run(tmp_path, "a", parts=2)
    assert len(sync([tmp_path], dry_run=True)) == 1
    assert "a/seed1: would be uploaded (2 part(s))" in capsys.readouterr().out
    with pytest.raises(UserError, match="nothing was uploaded, 1 run.* no API key found; log in with `wandb login`"):
        sync([tmp_path])
    assert asked(tmp_path) == []


def test_an_upload_that_hangs_is_ended_with_its_children(
    tmp_path: Path, stand_in: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "slow")
    with pytest.raises(UserError, match="1 of 1 uploads failed"):
        sync([tmp_path], timeout=6)  # long enough to start Python on a machine with much to do
    assert "not finished after 6 s; raise --timeout" in capsys.readouterr().out
    status = Path("/proc", (tmp_path / "child").read_text(), "status")
    end = time.monotonic() + 30
    while not is_over(status) and time.monotonic() < end:  # a killed process takes a moment to end
        time.sleep(0.05)
    assert is_over(status)


def is_over(status: Path) -> bool:
    """Whether a process, by its file in /proc, is gone, or has ended and was not collected yet."""
    try:
        return "State:\tZ" in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_an_upload_that_leaves_no_mark_does_not_count(
    tmp_path: Path, stand_in: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "liar")
    with pytest.raises(UserError, match="1 of 1 uploads failed"):
        sync([tmp_path])
    assert "exited with code 0 and no output" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [({"jobs": 0}, "--jobs must be at least 1"), ({"timeout": 0}, "--timeout above 0"), ({}, "no such folder")],
)
def test_wrong_options(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sync([tmp_path if options else tmp_path / "nowhere"], **options)


@pytest.mark.slow
def test_a_silent_server_does_not_hold_up_wandb_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B's own command, asked to upload to a port that takes connections and never answers."""
    make_run(tmp_path, "a")
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []
        threading.Thread(target=lambda: held.extend(server.accept() for _ in range(50)), daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(UserError, match="1 of 1 uploads failed"):
            sync([tmp_path], timeout=8)
    assert "failed: " in capsys.readouterr().out
