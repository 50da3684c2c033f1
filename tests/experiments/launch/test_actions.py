"""What is done with a run that is there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from beyondpixel.experiments import job
from beyondpixel.experiments.compare.frame import read_runs
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.actions import Action, choose_actions, record_failures, take
from beyondpixel.experiments.launch.command import launch
from beyondpixel.experiments.launch.lock import HeldError, RunLock
from beyondpixel.experiments.plan import Run

pytestmark = pytest.mark.usefixtures("quiet")


def leave_behind(run: Run, **state: Any) -> Run:
    """What an earlier launch left of a run."""
    run.prepare()
    run.folder.update_state(**{"status": "done", "step": 8, **state})
    run.folder.last_checkpoint.parent.mkdir(parents=True, exist_ok=True)
    run.folder.last_checkpoint.write_bytes(b"weights")
    return run


@pytest.mark.parametrize(
    ("state", "options", "kind", "reason"),
    [
        ({}, {}, "keep", "done"),
        ({}, {"overwrite": True}, "replace", "done"),
        ({"status": "failed", "error": "it rained"}, {}, "failed", "it rained"),
        ({"status": "failed"}, {"retry_failed": True}, "resume", "step 8"),
        # the same command finishes it, once there is space
        ({"status": "failed", "error": "disk full: 0 bytes are free"}, {}, "resume", "step 8"),
        ({"status": "failed", "error": "OSError: [Errno 28] No space left on device"}, {}, "resume", "step 8"),
        ({"status": "running"}, {}, "resume", "step 8"),  # says so, but nobody holds its lock: it was killed
        ({"status": "stopped"}, {}, "resume", "step 8"),
        ({"status": "trained"}, {}, "resume", "with its test"),
        ({"status": "trained", "error": "no such layer"}, {}, "failed", "no such layer"),  # in an evaluation
        ({"status": "trained", "error": "no such layer"}, {"retry_failed": True}, "resume", "with its test"),
        ({"status": "queued", "job": "99999_1"}, {}, "resume", "step 8"),  # a job that is no more
    ],
)
def test_what_is_done_with_a_run_that_is_there(
    runs_of: Callable[..., list[Run]], state: dict[str, Any], options: dict[str, Any], kind: str, reason: str
) -> None:
    there, new = runs_of(1, 2)
    action, other = choose_actions([leave_behind(there, **state), new], **options)
    assert action.kind == kind
    assert reason in action.reason
    assert other == Action("start", seen={"status": "new"})


@pytest.mark.parametrize(("status", "what"), [("done", "a finished"), ("stopped", "an unfinished")])
def test_a_folder_with_a_run_of_another_config_is_not_prepared(
    runs_of: Callable[..., list[Run]], status: str, what: str
) -> None:
    """As a script does for another scheduler, whose job would resume it, or show its scores with the other config."""
    (run,) = runs_of(1)
    leave_behind(run, status=status)
    (longer,) = runs_of(1, **{"trainer.max_steps": 9})
    with pytest.raises(UserError, match=f"holds {what} run of another config \\(trainer.max_steps was 8 and is 9\\)"):
        longer.prepare()
    assert run.folder.config["trainer"]["max_steps"] == run.folder.record["axes"]["max_steps"] == 8
    run.prepare()


def test_a_run_that_goes_on_is_left_alone(runs_of: Callable[..., list[Run]]) -> None:
    (run,) = runs_of(1)
    with RunLock(run.folder.lock_file):
        (action,) = choose_actions([run], overwrite=True)
    assert action.kind == "leave"
    assert action.reason.startswith("running, process ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b""),
        ("state.json", b"[1]"),
        ("state.json", b'{"status": "flying"}'),
        ("run.json", b"\x00\xff"),
        ("summary.json", b"{"),
        ("config.yaml", b"\x00\x01"),
        ("config.yaml", b"- a list"),
    ],
)
def test_a_damaged_run_is_named_and_counted_and_stops_no_other(
    runs_of: Callable[..., list[Run]], place: Path, name: str, content: bytes
) -> None:
    damaged, fine = leave_behind(runs_of(1)[0]), leave_behind(runs_of(2)[0])
    (damaged.folder.path / name).write_bytes(content)
    actions = choose_actions([damaged, fine])
    assert [action.kind for action in actions] == ["damaged", "keep"]
    assert str(damaged.folder.path / name) in actions[0].reason
    with pytest.raises(UserError, match="^1 runs are damaged and were left alone: tiny/ce seed1; --overwrite replaces"):
        launch([str(place / "tiny" / "ce.yaml")], seeds=[1, 2], output=place / "outputs")
    (action,) = choose_actions([damaged], overwrite=True)
    assert action.kind == "replace"
    take(damaged, action)
    assert damaged.folder.state["status"] == "queued"


def test_a_failed_run_is_left_alone_and_told(runs_of: Callable[..., list[Run]], place: Path) -> None:
    for row in ("ce", "rmi"):
        leave_behind(runs_of(1, row=row)[0], status="failed", error="it rained")
    with pytest.raises(UserError, match="2 runs failed in an earlier launch and were left alone: tiny/ce seed1, tiny/"):
        launch([str(place / "tiny")], output=place / "outputs")


def test_runs_of_other_configs_are_all_told(runs_of: Callable[..., list[Run]]) -> None:
    leave_behind(runs_of(1)[0])
    leave_behind(runs_of(1, row="rmi")[0], status="stopped")
    changed = {"trainer.max_steps": 9}
    with pytest.raises(UserError) as told:
        choose_actions([*runs_of(1, **changed), *runs_of(1, row="rmi", **changed)])
    for row, what in (("ce", "a finished"), ("rmi", "an unfinished")):
        expected = f"{row}/seed1 holds {what} run of another config (trainer.max_steps was 8 and is 9), which is kept"
        assert expected in str(told.value)
    assert [action.kind for action in choose_actions(runs_of(1, **changed), overwrite=True)] == ["replace"]


def test_evaluations_that_a_row_has_got_since_or_that_are_not_whole_are_made(
    runs_of: Callable[..., list[Run]], place: Path
) -> None:
    leave_behind(runs_of(1)[0])
    file = place / "tiny" / "ce.yaml"
    evaluations = ["tta:flip", "window:16", "window:32"]
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "evaluations": evaluations}))
    (run,) = runs_of(1)
    whole = ("run.json", "summary.json", "confusion.npz", "test_images.npz")
    for folder, files in (("tta-flip", whole), ("window-16-overlap-0.333", whole[:1])):
        for name in files:
            there = run.folder.path / "evaluations" / folder / name
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_text(json.dumps({"evaluation": {"checkpoint": None}}))
    (action,) = choose_actions([run])
    assert (action.kind, action.reason) == ("resume", "with window:16, window:32")
    take(run, action)
    assert run.folder.state["status"] == "trained"  # so that the job trains nothing
    assert run.folder.record["evaluations"] == evaluations
    run.folder.update_state(status="done")
    run.folder.last_checkpoint.unlink()  # as with --keep none; it is not trained anew for an evaluation
    (action,) = choose_actions([run], retry_failed=True)
    assert action.kind == "keep"
    assert action.reason == "done, but without window:16, window:32: its checkpoint was not kept"


def test_an_evaluation_that_fails_leaves_a_trained_run(
    runs_of: Callable[..., list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Any) -> None:
        raise UserError("--crf: no such package")

    run = leave_behind(runs_of(1)[0], status="trained")
    monkeypatch.setattr(job, "_train_and_evaluate", fail)
    with pytest.raises(UserError, match="no such package"):
        job.run_job(run.folder.path)
    assert (run.folder.state["status"], run.folder.state["error"]) == ("trained", "--crf: no such package")
    (action,) = choose_actions([run])
    assert (action.kind, action.reason) == ("failed", "--crf: no such package")
    record_failures([(run, action)])
    run.folder.update_state(job="99999_1", job_log="99999_1.err")
    (action,) = choose_actions([run], retry_failed=True)
    assert action.kind == "resume"
    take(run, action)
    assert [run.folder.state[name] for name in ("error", "job", "job_log")] == [None] * 3


def test_a_run_that_somebody_else_has_begun_since_is_not_taken(runs_of: Callable[..., list[Run]]) -> None:
    (run,) = runs_of(1)
    (action,) = choose_actions([run])
    take(run, action)
    with pytest.raises(HeldError, match="seed1 is being worked on by another process"):
        take(run, action)
    (again,) = choose_actions([run], overwrite=True)
    run.folder.update_state(status="done")  # by that process, meanwhile
    with pytest.raises(HeldError):
        take(run, again)
    assert run.folder.state["status"] == "done"
    (again,) = choose_actions([run], overwrite=True)
    run.folder.update_state(step=9)
    with pytest.raises(HeldError):
        take(run, again)


def fake_programs(folder: Path, **answers: str) -> str:
    """Programs of SLURM that answer what the real ones are documented to; the path to find them."""
    folder.mkdir()
    for name, answer in answers.items():
        (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_slurm_is_asked_about_its_jobs_alone_and_once(
    runs_of: Callable[..., list[Run]], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local launch on a machine with SLURM does not wait for a controller that does not answer."""
    monkeypatch.setenv("PATH", fake_programs(place / "bin", squeue=""))
    asked = place / "asked"
    (place / "bin" / "squeue").write_text(f"#!/bin/sh\necho asked >> {asked}\n")
    new, stopped, *queued = runs_of(1, 2, 3, 4)
    leave_behind(stopped, status="stopped")
    choose_actions([new, stopped])
    assert not asked.exists()
    for run in queued:
        leave_behind(run, status="queued", job=f"7_{run.seed}")
    choose_actions([new, stopped, *queued])
    assert asked.read_text() == "asked\n"


def test_jobs_that_died_are_called_failed_and_held_ones_are_named(
    runs_of: Callable[..., list[Run]], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tests' cluster cannot do: kill for memory by cgroups, and remember jobs in a database."""
    monkeypatch.setenv(
        "PATH",
        fake_programs(
            place / "bin",
            squeue="7_4|PENDING|JobHeldUser\n7_5|PENDING|Priority\n7_6|RUNNING|None",
            sacct="7_1|OUT_OF_MEMORY\n7_2|CANCELLED by 1000\n7_3|FAILED\n7_8|NODE_FAIL\n7_9|FAILED",
        ),
    )
    runs = runs_of(*range(1, 10))
    for seed, run in enumerate(runs, 1):
        log = place / f"{seed}.err"
        status = "running" if seed in (1, 6, 9) else "queued"
        run.prepare()
        run.folder.update_state(status=status, job=f"7_{seed}", job_log=str(log))
    (place / "3.err").write_text("loading\nsrun: error: unknown container\n\n")
    (place / "7.err").write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0\n")
    actions = choose_actions(runs)
    assert [action.kind for action in actions] == [
        *("failed", "start", "failed", "leave", "leave", "leave", "failed", "start", "start")
    ]
    memory = "out of memory in SLURM job 7_{}: give more with --mem, or lower data.batch_size"
    assert [actions[0].reason, actions[6].reason] == [memory.format(1), memory.format(7)]
    assert actions[2].reason == (
        f"SLURM job 7_3 ended before the run began: loading; srun: error: unknown container ({place / '3.err'})"
    )
    assert [action.reason for action in actions[3:6]] == [
        "queued, SLURM job 7_4 is held (JobHeldUser); release it with: scontrol release 7_4",
        "queued, SLURM job 7_5, pending: Priority",
        "queued, SLURM job 7_6, running",
    ]
    assert [action.kind for action in choose_actions(runs, overwrite=True)[3:6]] == ["leave"] * 3
    runs[6].folder.update_state(status="done")  # by another launch, meanwhile
    assert record_failures(list(zip(runs, actions, strict=True)))[0].startswith("3 runs failed in an earlier launch")
    for run, action in ((runs[0], actions[0]), (runs[2], actions[2])):
        assert (run.folder.state["status"], run.folder.state["error"]) == ("failed", action.reason)
    assert runs[6].folder.state["status"] == "done"


def test_a_queued_run_is_compared_as_one_without_scores(runs_of: Callable[..., list[Run]]) -> None:
    (run,) = runs_of(1)
    (action,) = choose_actions([run])
    take(run, action)
    compared = read_runs([run.folder.path])
    assert compared.damaged == []
    assert compared.frame["status"].tolist() == ["queued"]
    assert compared.frame["loss"].tolist() == ["ce"]
