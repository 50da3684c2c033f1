"""Runs of seconds: eleven classes on 32x48 pixels."""

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import pytest
import yaml

from beyondpixel.experiments.plan import Run, plan_runs

TINY: dict[str, Any] = {
    "model": {
        "class_path": "beyondpixel.lightning_modules.DeepLabModule",
        "init_args": {"encoder": "tu-test_resnet", "lr": 0.01},
    },
    "data": {
        "class_path": "beyondpixel.datamodules.ShapesDataModule",
        "init_args": {"num_train": 24, "num_val": 2, "num_test": 3, "image_size": [32, 48], "batch_size": 4},
    },
    "trainer": {"max_steps": 8, "log_every_n_steps": 1, "enable_progress_bar": False, "accelerator": "cpu"},
}


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A config of a run that takes seconds."""
    return copy.deepcopy(TINY)


@pytest.fixture
def place(tmp_path: Path, tiny: dict[str, Any]) -> Path:
    """A folder with a table of two rows."""
    for row in ("ce", "rmi"):
        tiny["model"]["init_args"]["loss"] = row
        file = tmp_path / "tiny" / f"{row}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump({"config": tiny, "reference": {"value": 50.0, "source": "nowhere"}}))
    return tmp_path


@pytest.fixture
def runs_of(place: Path) -> Callable[..., list[Run]]:
    """Makes runs of a row, one a seed."""

    def make(*seeds: int, row: str = "ce", **overrides: Any) -> list[Run]:
        spec = place / "tiny" / f"{row}.yaml"
        return plan_runs([spec], seeds=seeds, output=place / "outputs", overrides=overrides)

    return make


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Makes this process, and the environment it returns for others, one without an account and with one thread."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_", "WANDB_"))]:
        monkeypatch.delenv(name)
    # W&B looks for ~/.netrc; Matplotlib's font cache is kept where it is, because building it takes a while
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_configdir())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def environment(**changes: str) -> dict[str, str]:
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        return dict(os.environ)

    return environment


@pytest.fixture(scope="session")
def forks(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    return load_file(Path(__file__).with_name("forked_trainings.py"))


@pytest.fixture(scope="module")
def outcomes() -> dict[int, dict[str, Any]]:
    """Of runs that were left alone, by their steps."""
    return {}


@pytest.fixture
def uninterrupted(
    forks: ModuleType,
    outcomes: dict[int, dict[str, Any]],
    tiny: dict[str, Any],
    quiet: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> Callable[[int], dict[str, Any]]:
    """The outcome of a run of some steps that was left alone."""
    quiet(WANDB_MODE="disabled")

    def get(steps: int) -> dict[str, Any]:
        if steps not in outcomes:
            tiny["trainer"]["max_steps"] = steps
            whole = forks.prepare(tmp_path / "whole", tiny, 1)
            forks.finish(whole)
            outcomes[steps] = forks.outcome(whole)
        return outcomes[steps]

    return get


@pytest.fixture(scope="session")
def slurm_cluster(load_file: Callable[[Path], ModuleType]) -> Iterator[Any]:
    """A real SLURM of one node with two made-up GPUs, for all tests."""
    module = load_file(Path(__file__).with_name("slurm_cluster.py"))
    reason = module.why_impossible()
    if reason:
        pytest.skip(f"no SLURM here: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # munge's socket needs a short path
    cluster = module.Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
