"""A run on a real disk of a few megabytes."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.job import run_job
from beyondpixel.experiments.resolve import complete
from beyondpixel.experiments.run.folder import RunFolder

MEGABYTE = 2**20
CHECKPOINT = 8 * 10**6  # about; of the tiny network, with its momentum


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, whose size `resize` changes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system of a given size")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def prepare(path: Path, config: dict[str, Any]) -> RunFolder:
    folder = RunFolder(path)
    resolved, _ = complete(config)
    folder.config = {**resolved, "trainer": {**resolved["trainer"], "default_root_dir": str(folder.path)}}
    return folder


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("checkpoints", [0.5, 1.5, 2.5])
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_space(
    disk: Path, tiny: dict[str, Any], quiet: Callable[..., dict[str, str]], checkpoints: float
) -> None:
    quiet(WANDB_MODE="disabled")
    resize(disk, int(checkpoints * CHECKPOINT))
    folder = prepare(disk / "run", tiny)
    with pytest.raises(
        UserError, match=rf"^disk full: {disk}/\S+ could not be written, [\d,]+ bytes are free; make room"
    ):
        run_job(folder.path)
    assert folder.state["status"] == "failed"
    assert folder.state["error"].startswith("disk full: ")
    assert not list(folder.path.rglob("*.part"))
    resize(disk, 5 * CHECKPOINT)
    run_job(folder.path)
    assert folder.state["status"] == "done"
    assert folder.state["step"] == 8
    lines = [line["step"] for line in folder.metrics() if "train/loss" in line]
    assert lines == sorted(set(lines))


@pytest.mark.slow
@pytest.mark.faults
def test_a_disk_that_is_full_when_pictures_are_drawn(
    disk: Path, tmp_path: Path, tiny: dict[str, Any], quiet: Callable[..., dict[str, str]]
) -> None:
    """The run ends three times, each time with a sentence, and goes on with a bit more space until it is done."""
    quiet(WANDB_MODE="disabled")
    folder = prepare(tmp_path / "run", tiny)
    (folder.path / "images").symlink_to(disk)
    for kilobytes in (4, 16, 32):
        resize(disk, kilobytes * 1024)
        with pytest.raises(UserError, match=r"^disk full: \S+ could not be written, [\d,]+ bytes are free; make room"):
            run_job(folder.path)
        assert folder.state["status"] == "failed"
        assert folder.state["error"].startswith("disk full: ")
        for picture in disk.rglob("*.*g"):
            Image.open(picture).load()  # none is cut short
    resize(disk, MEGABYTE)
    run_job(folder.path)
    assert folder.state["status"] == "done"
    assert [line["step"] for line in folder.metrics() if "train/loss" in line] == list(range(8))


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("kilobytes", [4, 16, 64])
def test_a_disk_that_is_full_of_wandbs_files(
    disk: Path, tmp_path: Path, tiny: dict[str, Any], quiet: Callable[..., dict[str, str]], kilobytes: int
) -> None:
    """W&B's files are not needed: the run has its own, from which `sync` uploads."""
    quiet(WANDB_MODE="offline")
    resize(disk, kilobytes * 1024)
    folder = prepare(tmp_path / "run", tiny)
    (folder.path / "wandb").symlink_to(disk)
    run_job(folder.path)
    assert folder.state["status"] == "done"
    assert [line["step"] for line in folder.metrics() if "train/loss" in line] == list(range(8))
