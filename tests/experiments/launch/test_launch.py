"""Launching for real: processes, checkpoints, W&B's own files."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from beyondpixel.experiments.cli import main
from beyondpixel.experiments.image_counts import ImageCounts
from beyondpixel.experiments.run.folder import RunFolder

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def say(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Gives a command here, without the seconds that a process of its own takes to begin; returns what it says."""
    monkeypatch.chdir(place)

    def give(*words: str, fails: bool = False) -> str:
        with pytest.raises(SystemExit) if fails else nullcontext() as ended:
            main(words)
        out, error = capfd.readouterr()
        return out + error + (str(ended.value) if fails else "")

    return give


def run(place: Path, *words: str) -> str:
    """Gives a command in a process of its own; returns what it says."""
    command = [sys.executable, "-P", "-m", "beyondpixel.experiments", *words]  # -P: as the installed command
    done = subprocess.run(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_from_specs_to_a_table(place: Path, say: Callable[..., str]) -> None:
    (place / "queue.py").write_text("raise ImportError('the file of the current folder instead of the module')")
    said = run(place, "launch", "tiny", "--seeds", "2", "--jobs", "2", "--data.num_train", "8")
    assert "2 of 2 runs to do" in said
    for row in ("ce", "rmi"):
        folder = RunFolder(place / "outputs" / "tiny" / row / "seed2")
        assert folder.state == {"status": "done", "step": 8, "max_steps": 8, "error": None}
        assert f"tiny/{row} seed2: done; mIoU {100 * folder.summary['test/mIoU']:.1f} %" in said
        offline = "W&B: no API key found, so logging offline; upload later with: beyondpixel sync "
        assert offline in folder.log_file.read_text()
        assert (folder.record["axes"]["loss"], folder.record["seed"]) == (row, 2)
        assert folder.record["reference"]["value"] == 50.0
        check_scores(folder)
        check_figures(folder, row)
        assert list((folder.path / "images").glob("*.png"))
        assert folder.summary["test/seconds_per_image"] > 0
        assert folder.record["environment"]["device"]

    again = say("launch", "tiny", "--seeds", "2", "--data.num_train", "8")
    assert "0 of 2 runs to do" in again

    table = say("compare", "outputs/tiny", "--format", "md")
    assert table.splitlines()[0].startswith("| row | loss |")
    # a dagger marks runs of code with uncommitted changes
    assert [line.split()[1] for line in table.splitlines()[2:] if line.startswith("| ")] == ["ce", "rmi"]
    say("compare", "outputs/tiny", "--grid", "sheet.png")
    assert (place / "sheet.png").stat().st_size > 10_000

    words = ("--data.num_train", "8", "--trainer.max_steps", "5")
    refused = say("launch", "tiny", "--seeds", "2", *words, fails=True)
    assert "holds a finished run of another config (trainer.max_steps was 8 and is 5), which is kept" in refused
    check_wandb_files(place)
    check_evaluation_of_a_checkpoint(place, say)


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
    shown = subprocess.run(inspect, env=os.environ, capture_output=True, text=True, timeout=60, check=False)
    records = shown.stdout + shown.stderr
    for expected in ("region_size", "git_commit", "test/mIoU", "test/IoU/sky", "train/images_per_s", ".png"):
        assert expected in records, records[:3000]


def check_evaluation_of_a_checkpoint(place: Path, say: Callable[..., str]) -> None:
    """`test --ckpt_path` finds the config beside the checkpoint and gets the run's own score.

    Neither it nor `validate` changes what the run's own test left; `validate` leaves the areas of its images beside it.
    """
    folder = RunFolder(place / "outputs" / "tiny" / "rmi" / "seed2")
    said = say("test", "--ckpt_path", str(folder.last_checkpoint))
    printed = dict(re.findall(r"(\S+) (\d+\.\d\d)(?=,|$)", said, flags=re.MULTILINE))
    assert float(printed["test/mIoU"]) == pytest.approx(100 * folder.summary["test/mIoU"], abs=0.006)
    assert float(printed["sky"]) == pytest.approx(100 * folder.summary["test/IoU/sky"], abs=0.006)
    tested = folder.images_file("test").read_bytes()
    assert "val/mIoU_low" in say("validate", "--ckpt_path", str(folder.last_checkpoint))
    assert len(ImageCounts.load(folder.images_file("val"))) == 2
    assert folder.images_file("test").read_bytes() == tested
    say("predict", "--ckpt_path", str(folder.last_checkpoint), "--output", "predictions")
    assert len(list((place / "predictions").rglob("*.png"))) == 3


@pytest.mark.slow
def test_fit_trains_the_default_and_keeps_what_is_finished(place: Path, say: Callable[..., str]) -> None:
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
    said = say(*words, fails=True)
    assert "outputs/fit holds a finished run, which is kept; add --overwrite to replace it" in said
    said = say(*words, "--overwrite", "--model.encoder=resnet19", fails=True)
    assert said.splitlines()[-1].startswith("beyondpixel: unknown encoder 'resnet19': neither")
    first = folder.record["wandb_id"]
    say(*words, "--overwrite")
    assert folder.record["wandb_id"] != first
