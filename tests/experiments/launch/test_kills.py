"""Trainings that are killed many times, and a long one."""

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from beyondpixel.experiments.job import run_job
from beyondpixel.experiments.run.folder import Status

FULL = os.environ.get("BEYONDPIXEL_FAULTS") == "full"
RUNS, KILLS = (16, 50) if FULL else (1, 2)
pytestmark = [pytest.mark.slow, pytest.mark.faults]


def test_killed_runs_end_bit_identically(
    forks: ModuleType,
    tmp_path: Path,
    tiny: dict[str, Any],
    quiet: Callable[..., dict[str, str]],
    record_property: Callable[..., None],
) -> None:
    """At random moments, from the first write to the last; W&B logs to its files meanwhile."""
    quiet(WANDB_MODE="offline")
    tiny["trainer"]["max_steps"] = 20  # six a pass
    rng = random.Random(0)
    done = 0
    for seed in range(1, RUNS + 1):
        whole, killed = (forks.prepare(tmp_path / name / f"seed{seed}", tiny, seed) for name in ("whole", "killed"))
        forks.finish(whole)
        size = whole.metrics_size
        for _ in range(KILLS * seed // RUNS - KILLS * (seed - 1) // RUNS):
            moment = rng.uniform(0, size)
            process = forks.start(killed)
            while process.is_alive() and killed.metrics_size < moment:
                time.sleep(rng.uniform(0, 0.01))
            done += process.is_alive()
            forks.kill(process)
        forks.finish(killed)
        assert forks.outcome(killed) == forks.outcome(whole)
        assert not list(killed.path.rglob("*.part"))
        parts = {part.name.rpartition("-")[2] for part in killed.path.glob("wandb/offline-run-*")}
        assert parts == {killed.record["wandb_id"]}  # drawn once, however early it was killed
    record_property("tried", f"{done} kills, {RUNS} runs")


def test_a_run_killed_between_its_files_is_tested_again(
    forks: ModuleType,
    tmp_path: Path,
    tiny: dict[str, Any],
    quiet: Callable[..., dict[str, str]],
) -> None:
    """After the confusion matrix and before the scores, which are written last."""
    quiet(WANDB_MODE="disabled")
    tiny["trainer"]["max_steps"] = 2
    run = forks.prepare(tmp_path / "run", tiny, 1)
    run_job(run.path)
    whole = forks.outcome(run)
    run.summary = {name: value for name, value in run.summary.items() if not name.startswith("test/")}
    run.update_state(status=Status.TRAINED)
    run_job(run.path)
    assert forks.outcome(run) == whole


def test_a_killed_worker_leaves_a_checkpoint_and_names_the_samples_it_held(
    forks: ModuleType,
    tmp_path: Path,
    tiny: dict[str, Any],
    uninterrupted: Callable[[int], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = uninterrupted(8)
    tiny["data"]["init_args"] |= {"num_workers": 1, "cache": None}
    run = forks.prepare(tmp_path / "run", tiny, 1)
    code = forks.train_misbehaving(run, monkeypatch, "train_00008", lambda: os.kill(os.getpid(), signal.SIGKILL))
    said = (run.path / "said").read_text()
    assert (code, run.state["status"]) == (1, "failed"), said
    assert "Traceback" not in said
    assert run.state["error"] in said
    assert re.search(r"The data workers stopped: .*\n(.*\n)*  train_\d+\n", run.state["error"])
    done = torch.load(run.last_checkpoint, weights_only=True)["global_step"]
    assert done == run.state["step"] == forks.steps_of(run)
    forks.finish(run)
    assert forks.outcome(run) == whole


@pytest.mark.skipif(not FULL, reason="2,000 steps take minutes; make faults takes them")
def test_memory_stays_flat_over_2000_steps(
    forks: ModuleType,
    tmp_path: Path,
    tiny: dict[str, Any],
    quiet: Callable[..., dict[str, str]],
    record_property: Callable[..., None],
) -> None:
    quiet(WANDB_MODE="disabled")
    tiny["trainer"] |= {"max_steps": 2000, "log_every_n_steps": 50, "check_val_every_n_epoch": 50}
    folder = forks.prepare(tmp_path / "run", tiny, 1)
    process = forks.start(folder)
    page = os.sysconf("SC_PAGE_SIZE")
    measured: dict[int, float] = {}
    while process.is_alive():
        lines = [line["step"] for line in folder.metrics()]
        resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1] or 0) * page / 2**20
        if lines and resident:
            measured.setdefault(int(lines[-1]), resident)
        time.sleep(0.1)
    assert process.exitcode == 0, (folder.path / "said").read_text()[-2000:]
    early, late = (
        value for value in (measured[min(step for step in measured if step >= 500)], measured[max(measured)])
    )
    record_property("tried", f"{max(measured)} steps: {early:.0f} to {late:.0f} MB")
    assert late < 1.05 * early, json.dumps(measured)
