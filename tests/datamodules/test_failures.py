"""Failures while loading: one message that names the samples, whichever process reads them."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from beyondpixel.datamodules import CamVidDataModule, FolderDataModule, ShapesDataModule, VOCDataModule, loading
from beyondpixel.datamodules.datasets.base import Sample, SegmentationDataset
from beyondpixel.datamodules.datasets.errors import DataError

SMALL = {"train": 6, "val": 1, "test": 1}


def camvid(root: Path, **arguments: Any) -> CamVidDataModule:
    return CamVidDataModule(str(root), train_split="train", crop_size=16, batch_size=2, **arguments)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_file_is_one_message_without_traceback(make_camvid, num_workers: int) -> None:
    root = make_camvid(SMALL)
    (root / "trainannot" / "train_03.png").write_text("not an image")
    with pytest.raises(DataError) as caught:
        list(camvid(root, num_workers=num_workers).train_dataloader())
    message = str(caught.value)
    assert "1 of 6 samples cannot be used" in message
    assert f"{root / 'trainannot' / 'train_03.png'}: is not an image" in message
    assert "Traceback" not in message
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pipe_in_place_of_an_image_does_not_hang(make_camvid, num_workers: int) -> None:
    root = make_camvid(SMALL)
    data = camvid(root, num_workers=num_workers)
    data.setup("fit")
    (root / "train" / "train_02.png").unlink()
    os.mkfifo(root / "train" / "train_02.png")
    with pytest.raises(DataError, match=r"train_02\.png: is not a file"):
        list(data.train_dataloader())


class Odd(ShapesDataModule):
    """Scenes of which one misbehaves in the process that reads it."""

    def load_split(self, split: str) -> SegmentationDataset:  # type: ignore[override]
        return OddScenes(super().load_split(split))


class OddScenes(SegmentationDataset):
    action = "sleep"

    def __init__(self, scenes: SegmentationDataset) -> None:
        self.scenes, self.ids = scenes, scenes.ids

    def __getitem__(self, index: int) -> Sample:
        if index == 1 and self.action == "sleep":
            time.sleep(3600)
        if index == 1 and self.action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 1 and self.action == "fail":
            raise RuntimeError("odd")
        return self.scenes[index]

    def fingerprint(self) -> str:
        return ""


def odd(monkeypatch: pytest.MonkeyPatch, action: str, **arguments: Any) -> Odd:
    monkeypatch.setattr(OddScenes, "action", action)
    size: dict[str, Any] = {"num_val": 4, "image_size": (12, 16), "eval_batch_size": 2, "cache": None}
    return Odd(**size, **arguments)


def test_a_stuck_worker_ends_after_the_timeout_with_the_samples_it_held(monkeypatch: pytest.MonkeyPatch) -> None:
    data = odd(monkeypatch, "sleep", num_workers=1, timeout=4)
    with pytest.raises(DataError) as caught:
        list(data.val_dataloader())
    message = str(caught.value)
    assert "timed out after 4" in message
    assert "waits for batch 0, with these samples:\n  val_00000\n  val_00001\n" in message
    assert "--data.timeout" in message


def test_a_killed_worker_is_named_with_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"worker \(pid.*(killed|exited)(.|\n)*val_00001"):
        list(odd(monkeypatch, "die", num_workers=1).val_dataloader())


@pytest.mark.parametrize("lost", [ConnectionResetError, FileNotFoundError, EOFError])
def test_a_worker_that_dies_before_it_hands_a_batch_over(
    monkeypatch: pytest.MonkeyPatch, lost: type[Exception]
) -> None:
    """The connection to it ends first, and then the process."""

    def fetch(batches: Any, timeout: float) -> Any:
        threading.Timer(0.1, os.kill, (batches._workers[0].pid, signal.SIGKILL)).start()
        raise lost("the other end has left")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", fetch)
    with pytest.raises(DataError, match=r"The data workers stopped: .*killed by signal(.|\n)*val_00001") as caught:
        list(odd(monkeypatch, "none", num_workers=1).val_dataloader())
    assert caught.value.__cause__ is None


def test_a_lost_connection_of_living_workers_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(batches: Any, timeout: float) -> Any:
        raise ConnectionResetError("of a store that the images come from")

    monkeypatch.setattr(loading, "EXIT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", fetch)
    with pytest.raises(ConnectionResetError, match="of a store"):
        list(odd(monkeypatch, "none", num_workers=1).val_dataloader())


def test_a_programming_error_keeps_its_traceback_and_names_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"odd(.|\n)*sample 'val_00001'"):
        list(odd(monkeypatch, "fail", num_workers=1).val_dataloader())


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\xff\xfet\x00", r"train\.txt is not UTF-8 text \(byte 0 is 0xff\)"),
        (b"../secret.jpg\n", r"train\.txt has names that cannot be used:\n  '\.\./secret\.jpg'"),
        (b"/etc/passwd\n", r"names that cannot be used:\n  '/etc/passwd'"),
        (b"C:/windows/a.jpg\n", "names that cannot be used"),
        (b"a\x00b.jpg\n", "names that cannot be used"),
        (b"x" * 300 + b".jpg\n", "names that cannot be used"),
        (b"x/" * 1500 + b"a.jpg\n", "names that cannot be used"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "classes.yaml").write_text("classes:\n  - {name: a, color: [0, 0, 0]}\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(DataError, match=fault):
        FolderDataModule(str(tmp_path), val_split=None, test_split="train").setup("fit")


def test_lists_of_public_data_sets_are_checked_as_well(make_camvid, tmp_path: Path) -> None:
    root = make_camvid(SMALL)
    (root / "train.txt").write_bytes(b"/SegNet/CamVid/../../a.png /SegNet/CamVid/trainannot/a.png\n")
    with pytest.raises(DataError, match="names that cannot be used"):
        camvid(root).setup("fit")
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / "VOC2012" / folder).mkdir(parents=True)
    (tmp_path / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"\x80")
    with pytest.raises(DataError, match="is not UTF-8"):
        VOCDataModule(str(tmp_path / "VOC2012")).setup("validate")


def test_names_in_other_alphabets_are_welcome(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text("classes:\n  - {name: a, color: [0, 0, 0]}\n")
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        image = np.zeros((4, 4, 3) if folder == "images" else (4, 4), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / folder / "Bäume 木 1.png")
    (tmp_path / "test.txt").write_text("\ufeffBäume 木 1.png\r\n", encoding="utf-8")
    assert FolderDataModule(str(tmp_path)).dataset("test").ids == ["Bäume 木 1"]
