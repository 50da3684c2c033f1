"""How many files a run leaves: clusters limit their number."""

from collections.abc import Callable
from typing import Any

import pytest

from beyondpixel.experiments.job import run_job
from beyondpixel.experiments.plan import Run


@pytest.mark.slow
def test_a_run_leaves_at_most_25_files(runs_of: Callable[..., list[Run]], quiet: Callable[..., dict[str, str]]) -> None:
    """With W&B's own, all images that are drawn, and validations enough for every time that they are drawn."""
    quiet(WANDB_MODE="offline")
    every_step: dict[str, Any] = {"trainer.val_check_interval": 1, "trainer.check_val_every_n_epoch": None}
    (run,) = runs_of(1, **{"data.num_test": 10, "data.num_val": 4, "trainer.max_steps": 8, **every_step})
    run.prepare()
    folder = run.folder
    run_job(folder.path)
    assert folder.state["status"] == "done"
    files = [file.relative_to(folder.path).as_posix() for file in folder.path.rglob("*") if file.is_file()]
    assert {"images/val.png", "images/test.zip", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= set(files)
    assert sum("media/images/val" in file for file in files) == 2
    assert len(files) <= 25, "\n".join(sorted(files))
