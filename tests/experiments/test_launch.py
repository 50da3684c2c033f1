"""Launching for real: processes, checkpoints, W&B's own files, an interruption in the middle."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import yaml

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.image_areas import ImageAreas
from beyondpixel.experiments.launch.cells import expand
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.experiments.specs import merge

COMMAND = [sys.executable, "-m", "beyondpixel.experiments"]
TINY: dict[str, Any] = {
    "model": {
        "class_path": "beyondpixel.lightning_modules.DeepLabModule",
        "init_args": {"encoder": "resnet18", "lr": 0.01},
    },
    "data": {
        "class_path": "beyondpixel.datamodules.ShapesDataModule",
        "init_args": {"num_train": 8, "num_val": 2, "num_test": 3, "image_size": [32, 48], "batch_size": 4},
    },
    "trainer": {"max_steps": 8, "log_every_n_steps": 1, "enable_progress_bar": False},
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a table of two rows."""
    for row in ("ce", "rmi"):
        config = {**TINY, "model": {**TINY["model"], "init_args": {**TINY["model"]["init_args"], "loss": row}}}
        file = tmp_path / "tiny" / f"{row}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump({"config": config, "reference": {"value": 50.0, "source": "nowhere"}}))
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    """This process's, without an account."""
    hidden = {"WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    # W&B looks for ~/.netrc; Matplotlib's font cache is kept where it is, because building it takes a while
    cache = {"MPLCONFIGDIR": matplotlib.get_configdir()}
    return {**kept, **cache, "HOME": str(place), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


def run(place: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [*COMMAND, *words],
        cwd=place,
        env=environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.mark.slow
def test_from_specs_to_a_table(place: Path) -> None:
    said = run(place, "launch", "tiny", "--seeds", "2")
    assert "W&B: no API key found, so logging offline; upload later with: wandb sync " in said
    for row in ("ce", "rmi"):
        folder = RunFolder(place / "outputs" / "tiny" / row / "seed2")
        assert folder.state == {"status": "done", "step": 8, "max_steps": 8, "error": None}
        assert (folder.record["axes"]["loss"], folder.record["seed"]) == (row, 2)
        assert folder.record["reference"]["value"] == 50.0
        check_scores(folder)
        check_figures(folder, row)
        assert list((folder.path / "pictures").glob("*.png"))
        assert folder.summary["test/seconds_per_image"] > 0
        assert folder.record["environment"]["device"]

    again = run(place, "launch", "tiny", "--seeds", "2")
    assert "0 of 2 runs to do" in again

    table = run(place, "compare", "outputs/tiny", "--format", "md")
    assert table.splitlines()[0].startswith("| row | loss |")
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| ce", "| rmi"]
    run(place, "compare", "outputs/tiny", "--picture", "sheet.png")
    assert (place / "sheet.png").stat().st_size > 10_000

    refused = run(place, "launch", "tiny", "--seeds", "2", "--trainer.max_steps", "5", code=1)
    assert "holds a finished run of another config (trainer.max_steps was 8 and is 5), which is kept" in refused
    check_wandb_files(place)
    check_evaluation_of_a_checkpoint(place)


def check_scores(folder: RunFolder) -> None:
    """The logged scores are those of the confusion matrix, worked out again with NumPy."""
    with np.load(folder.confusion_file) as saved:
        matrix, names = saved["matrix"].astype(float), [str(name) for name in saved["class_names"]]
    assert matrix.sum() <= 3 * 32 * 48
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    with np.errstate(invalid="ignore"):
        iou = np.where(union > 0, matrix.diagonal() / union, np.nan)
    assert folder.summary["test/mIoU"] == pytest.approx(np.nanmean(iou), abs=1e-6)
    for name, value in zip(names, iou, strict=True):
        assert folder.summary[f"test/IoU/{name}"] == pytest.approx(value, abs=1e-6, nan_ok=True)


def check_figures(folder: RunFolder, row: str) -> None:
    lines = list(folder.metrics())
    losses = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    assert [step for step, _ in losses] == list(range(8))
    terms = {key for line in lines for key in line if key.startswith("train/loss_")}
    assert terms == ({"train/loss_pixel", "train/loss_rmi"} if row == "rmi" else {"train/loss_pixel"})
    if row == "rmi":
        for line in lines:
            if "train/loss" in line:
                halves = 0.5 * line["train/loss_pixel"] + 0.5 * line["train/loss_rmi"]
                assert line["train/loss"] == pytest.approx(halves, rel=1e-5)
    assert any(key.startswith("lr-") for line in lines for key in line)


def check_wandb_files(place: Path) -> None:
    """Read W&B's own offline file back with W&B's own reader."""
    folder = RunFolder(place / "outputs" / "tiny" / "rmi" / "seed2")
    (file,) = folder.path.glob("wandb/offline-run-*/*.wandb")
    assert folder.record["wandb_id"] in file.name
    inspect = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", str(file)]
    shown = subprocess.run(inspect, env=environment(place), capture_output=True, text=True, timeout=60, check=False)
    records = shown.stdout + shown.stderr
    for expected in ("region_size", "git_commit", "test/mIoU", "test/IoU/sky", "train/images_per_s", ".png"):
        assert expected in records, records[:3000]


def check_evaluation_of_a_checkpoint(place: Path) -> None:
    """`test --ckpt_path` finds the config beside the checkpoint and gets the run's own score.

    Neither it nor `validate` changes what the run's own test left; `validate` leaves the areas of its images beside it.
    """
    folder = RunFolder(place / "outputs" / "tiny" / "rmi" / "seed2")
    said = run(place, "test", "--ckpt_path", str(folder.last_checkpoint))
    line = next(line for line in said.splitlines() if "test/mIoU" in line)
    assert float(line.replace("│", " ").split()[-1]) == pytest.approx(folder.summary["test/mIoU"], abs=1e-5)
    tested = folder.images_file("test").read_bytes()
    assert "val/mIoU_low" in run(place, "validate", "--ckpt_path", str(folder.last_checkpoint))
    assert len(ImageAreas.load(folder.images_file("val"))) == 2
    assert folder.images_file("test").read_bytes() == tested
    run(place, "predict", "--ckpt_path", str(folder.last_checkpoint))
    assert len(list((folder.path / "predictions").rglob("*.png"))) == 3


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_resumes(place: Path) -> None:
    words = ["launch", "tiny/ce.yaml", "--trainer.max_steps=100", "--data.num_train=64"]  # 16 steps an epoch
    # a session of its own, so that the signal reaches launcher and run as Ctrl-C in a terminal does
    process = subprocess.Popen(
        [*COMMAND, *words],
        cwd=place,
        env=environment(place),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = RunFolder(place / "outputs" / "tiny" / "ce" / "seed1")
    deadline = time.monotonic() + 300
    while len(list(folder.metrics())) < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130, said
    stopped = folder.state["step"]
    assert folder.state["status"] == "interrupted"
    assert 3 <= stopped < 100

    refused = run(place, *words, "--trainer.max_steps=101", code=1)
    assert "holds an unfinished run of another config (trainer.max_steps was 100 and is 101)" in refused
    said = run(place, *words)
    assert f"resumes at step {stopped}" in said
    assert folder.state == {"status": "done", "step": 100, "max_steps": 100, "error": None}
    steps = [line["step"] for line in folder.metrics() if "train/loss" in line]
    # Lightning counts the interrupted step in its logs: from there on its numbers may be one higher
    assert steps == sorted(set(steps))
    assert len(steps) >= 99
    assert steps[-1] in (99, 100)


@pytest.mark.slow
def test_fit_trains_the_default_and_keeps_what_is_finished(place: Path) -> None:
    words = [
        "fit",
        "--trainer.max_steps=2",
        "--data.num_train=8",
        "--data.num_val=2",
        "--model.encoder=resnet18",
        "--trainer.enable_progress_bar=false",
        "--trainer.check_val_every_n_epoch=1000",  # the checkpoint must not wait for a validation
    ]
    run(place, *words)
    folder = RunFolder(place / "outputs" / "fit")
    assert folder.state["status"] == "trained"
    assert folder.last_checkpoint.exists()
    said = run(place, *words, code=1)
    assert "outputs/fit holds a finished run, which is kept; add --overwrite to replace it" in said
    said = run(place, *words, "--overwrite", "--model.encoder=resnet19", code=1)
    assert said.splitlines()[-1].startswith("beyondpixel: unknown encoder 'resnet19': neither")
    first = folder.record["wandb_id"]
    run(place, *words, "--overwrite")
    assert folder.record["wandb_id"] != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"init_args": {"loss": {"name": "rmi", "radius": 3}}}}, r"radius.*region_size"),
        ({"model": {"init_args": {"loss": "rmj"}}}, r"expected one of .*'rmi'.*got 'rmj'"),
        (
            {"model": {"init_args": {"loss": {"name": "rmi", "pooling": "sum"}}}},
            r"pooling: expected one of .*'avg'.*got 'sum'",
        ),
        ({"model": {"init_args": {"encodr": "resnet18"}}}, "encodr"),
        ({"trainer": {"max_stepps": 3}}, "max_stepps"),
        ({"data": {"class_path": "beyondpixel.datamodules.CamWidDataModule"}}, "CamWidDataModule"),
        (
            {"data": {"class_path": "beyondpixel.datamodules.CamVidDataModule", "init_args": {"root": "/nowhere"}}},
            "There is no folder /nowhere.*beyondpixel data get camvid --root /nowhere",
        ),
    ],
)
def test_a_wrong_spec_is_told_before_anything_starts(place: Path, change: dict[str, Any], message: str) -> None:
    (place / "tiny" / "wrong.yaml").write_text(yaml.safe_dump({"config": merge(TINY, change)}))
    with pytest.raises(UserError, match=rf"(?s)nothing was started:\n.*wrong\.yaml: .*{message}"):
        expand([place / "tiny"], seeds=[1], output=place / "outputs", overrides={})
    assert not (place / "outputs").exists()
