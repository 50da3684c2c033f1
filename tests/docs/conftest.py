"""Small data for the commands of the documentation, and finished runs for those that read runs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beyondpixel.datamodules import camvid
from beyondpixel.experiments.job import run_job
from beyondpixel.experiments.plan import plan_runs

SIZE = (48, 64)
COUNTS = {"train": 4, "val": 2, "test": 2}


def _save_pair(rng: np.random.Generator, image: Path, mask: Path, num_classes: int) -> None:
    labels = rng.integers(0, num_classes, (SIZE[0] // 8, SIZE[1] // 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for file, array in ((image, rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)), (mask, labels)):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(file)


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders of `small_size.DATA`, below a folder that pages are run in."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        names = [f"{split}_{index}.png" for index in range(count)]
        root = tmp_path / "CamVid"
        for name in names:
            _save_pair(rng, root / split / name, root / f"{split}annot" / name, 12)
            _save_pair(rng, tmp_path / f"leaves/images/{split}/{name}", tmp_path / f"leaves/masks/{split}/{name}", 2)
        lines = [f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n" for name in names]
        (root / f"{split}.txt").write_text("".join(lines))
    monkeypatch.setattr(camvid, "COUNTS", {**COUNTS, "trainval": COUNTS["train"] + COUNTS["val"]})
    return tmp_path


@pytest.fixture(scope="session")
def finished_table(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], None]:
    """Puts finished runs, really trained, where a launch of a table would: two rows, whatever the table's name."""
    made: list[Path] = []

    def put(table: str, outputs: Path) -> None:
        if not made:
            made.append(_train_two_rows(tmp_path_factory.mktemp("finished")))
        if not (outputs / table).exists():
            shutil.copytree(made[0] / "demo", outputs / table)

    return put


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str], Callable[[list[str]], None]], None]:
    """Runs a `fit`, and where an earlier page has run the same one in another folder, copies what it left there."""
    kept = tmp_path_factory.mktemp("trained")
    folders: dict[str, Path] = {}

    def fit(words: list[str], main: Callable[[list[str]], None]) -> None:
        options = dict(word.partition("=")[::2] for word in words[1:])  # the last of two counts
        place = Path(options.pop("--trainer.default_root_dir"))
        key = repr(sorted(options.items()))
        if key in folders:
            shutil.copytree(folders[key], place)
        else:
            main(words)
            folders[key] = Path(shutil.copytree(place, kept / str(len(folders))))

    return fit


def _train_two_rows(outputs: Path) -> Path:
    small = {
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.logger": False,
        "model.warmup_iters": 0,
        "data.image_size": [48, 64],
        "data.batch_size": 2,
        "data.num_workers": 0,
        **{f"data.num_{split}": 2 for split in ("train", "val", "test")},
    }
    for run in plan_runs(["demo/ce", "demo/rmi"], seeds=[1], output=outputs, overrides=small):
        run.prepare()
        run_job(run.folder.path)
        run.folder.record = {**run.folder.record, "git_commit": "1" * 40}  # whether or not the checkout is clean
    return outputs


@pytest.fixture
def page_folder(small_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a page is run in, with nothing of the user's environment."""
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.syspath_prepend(small_data)
    monkeypatch.chdir(small_data)
    return small_data
