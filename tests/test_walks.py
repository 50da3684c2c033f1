"""The three walks of ARCHITECTURE.md, walked by the program itself: its stops are counted and compared with the page.

A stop is a function of this package that is running when what is followed takes its next form, or when it arrives. So
the stops are what a reader has to open on the way, without what is called to check, name or show something.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from beyondpixel.datamodules import FolderDataModule
from beyondpixel.datamodules.datasets.base import Sample
from beyondpixel.experiments.build import Built
from beyondpixel.experiments.evaluation_recorder import EvaluationRecorder
from beyondpixel.experiments.job import run_job
from beyondpixel.experiments.launch import local
from beyondpixel.experiments.launch.command import launch
from beyondpixel.experiments.plan import Run
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.spec import RunSpec
from beyondpixel.lightning_modules import SegmentationModule
from beyondpixel.losses import RMILoss

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = ("losses", "lightning_modules", "datamodules", "experiments")
Stop = tuple[str, str]  # file and function


class Arrived(BaseException):
    """The end of a walk."""


@cache
def file_of(code: CodeType) -> str | None:
    """The file of a function of this package, from the checkout's root; None for others and for comprehensions."""
    file = Path(code.co_filename).resolve()
    ours = file.is_relative_to(CHECKOUT) and file.relative_to(CHECKOUT).parts[0] in PACKAGES
    return file.relative_to(CHECKOUT).as_posix() if ours and "<" not in code.co_name else None


def running(frame: FrameType | None) -> list[Stop]:
    """The functions of this package on the stack, the outermost first."""
    stack = []
    while frame is not None:
        file = file_of(frame.f_code)
        if file is not None:
            stack.append((file, frame.f_code.co_qualname))
        frame = frame.f_back
    return stack[::-1]


@contextlib.contextmanager
def profiled(on_event: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    """Tell a function of all calls and returns meanwhile."""
    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(None)


class Walk:
    """Notes what is running whenever something takes a new form.

    Args:
        forms_in: from the name of a function that returns, and what it returns, to the forms in it.
    """

    def __init__(self, forms_in: Callable[[str, Any], list[Any]]) -> None:
        self.forms_in = forms_in
        self.made: list[tuple[Any, list[Stop]]] = []
        self._seen: set[int] = set()

    def on_event(self, frame: FrameType, event: str, value: Any) -> None:
        if event == "return" and file_of(frame.f_code) is not None:
            for form in self.forms_in(frame.f_code.co_qualname, value):
                if id(form) not in self._seen:
                    self._seen.add(id(form))  # `made` keeps it alive, so that no other object takes its place
                    self.made.append((form, running(frame)))

    def stops(self, end: list[Stop], leads_there: Callable[[Any, list[Stop]], bool]) -> list[Stop]:
        """Those of the forms that lead to the end, and those at the end, in order."""
        on_the_way = [stop for form, stack in self.made if leads_there(form, stack) for stop in stack]
        return list(dict.fromkeys([*on_the_way, *end]))


def files_of(stops: Iterable[Stop]) -> set[str]:
    return {file for file, _ in stops}


def compare_with_page(heading: str, stops: list[Stop]) -> None:
    """ARCHITECTURE.md names the files of a walk, and says how many stops there are."""
    section = (CHECKOUT / "ARCHITECTURE.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    walked = "\n".join(" ".join(stop) for stop in stops)
    assert set(re.findall(r"`([\w/]+\.py)`", section)) == files_of(stops), walked
    assert f"{len(stops)} stops in {len(files_of(stops))} files" in section, walked


def forms_of_row(name: str, value: Any) -> list[Any]:
    """Spec, config, run, the config on the disk, objects, and Trainer."""
    if name == "RunFolder.config" and value is None:
        return ["config.yaml"]
    values = value if isinstance(value, list | tuple) and not isinstance(value, Built) else [value]
    keys = {"model", "data", "trainer", "seed_everything"}
    kinds = RunSpec | Run | Built | Trainer
    return [one for one in values if isinstance(one, kinds) or (isinstance(one, dict) and keys <= one.keys())]


def test_from_a_row_to_its_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    walk, stops = Walk(forms_of_row), []

    def run_here(command: list[str], **settings: Any) -> None:
        run_job(Path(command[-1]))

    def fit(trainer: Trainer, module: LightningModule, *args: Any, **kwargs: Any) -> None:
        caller = sys._getframe(1)
        config = caller.f_locals["config"]

        def leads_there(form: Any, stack: list[Stop]) -> bool:
            """Whether it is no network that a check has built, and no config that another one has read."""
            planned = "plan_runs" in (name for _, name in stack)
            return (
                form.module is module
                if isinstance(form, Built)
                else not isinstance(form, dict) or (planned or form is config)
            )

        stops.extend(walk.stops(running(caller), leads_there))
        raise Arrived

    # the launcher's process of a run, as a call
    monkeypatch.setattr(local, "subprocess", SimpleNamespace(Popen=run_here, DEVNULL=None, STDOUT=None))
    monkeypatch.setattr(Trainer, "fit", fit)
    with profiled(walk.on_event), pytest.raises(Arrived):
        launch(["demo/rmi"], output=tmp_path, gpus=0)
    assert len(stops) <= 25
    assert len(files_of(stops)) <= 10
    compare_with_page("From a row to its trainer", stops)


def test_from_logits_to_the_gradient() -> None:
    """Of this one nothing is left out: every function that runs is a stop."""
    loss = RMILoss(num_classes=3, backend="plain")  # which is there on every machine
    logits = torch.randn(2, 3, 33, 33, requires_grad=True)
    target = torch.randint(3, (2, 33, 33))
    calls: dict[Stop, None] = {}

    def on_event(frame: FrameType, event: str, value: Any) -> None:
        if file_of(frame.f_code) is not None:
            calls.update(dict.fromkeys(running(frame)))

    loss(logits, target)  # what is done once is left out
    with profiled(on_event):
        loss(logits, target).backward()
    assert logits.grad is not None
    types = {name.rpartition(".")[0] for _, name in calls if "." in name}
    assert len(types) <= 5
    assert len(files_of(calls)) <= 8
    compare_with_page("From logits to the gradient of RMI", list(calls))


class Pixelwise(SegmentationModule):
    """A network of one layer of torch's."""

    def configure_network(self, **network: Any) -> torch.nn.Module:
        return torch.nn.Conv2d(3, self.num_classes, kernel_size=1)


def forms_of_mask(name: str, value: Any) -> list[Any]:
    """The file's values, sample, batch, confusion matrix, mIoU, and the summary on the disk."""
    if name == "MeanIoU.count" or (name == "RunFolder.summary" and value is None):
        return [name]
    is_mask = isinstance(value, np.ndarray) and value.shape == (8, 8)
    is_sample = isinstance(value, Sample) and value.mask is not None
    return [value] if is_mask or is_sample or (isinstance(value, dict) and {"mask", "mIoU"} & value.keys()) else []


def test_from_a_mask_to_the_mean_iou(tmp_path: Path) -> None:
    for kind, shape in (("images", (8, 8, 3)), ("masks", (8, 8))):
        folder = tmp_path / "data" / kind / "test"
        folder.mkdir(parents=True)
        assert cv2.imwrite(str(folder / "a.png"), np.ones(shape, dtype=np.uint8))
    classes = "[{name: a, color: [0, 0, 0]}, {name: b, color: [9, 9, 9]}]"
    (tmp_path / "data" / "classes.yaml").write_text(f"masks: index\nclasses: {classes}")
    run = RunFolder(tmp_path / "run")
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EvaluationRecorder(run)],
    )
    data = FolderDataModule(str(tmp_path / "data"), num_workers=0)
    walk = Walk(forms_of_mask)
    with profiled(walk.on_event):
        trainer.test(Pixelwise(2, class_names=["a", "b"]), data, verbose=False)
    assert "test/mIoU" in run.summary
    compare_with_page("From a mask to mIoU", walk.stops([], lambda form, stack: True))
