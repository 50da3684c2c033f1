"""Run folders made by hand, and a browser."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.lightning_modules.visualization.sample_archive import write_samples

PACKAGES = {"torch": "2.9.0", "numpy": "2.1.0"}
PALETTE = [(0, 0, 200), (0, 160, 0), (220, 0, 0)]
CLASSES = ["sky", "tree", "car"]

MakeRun = Callable[..., RunFolder]


@pytest.fixture
def make_run() -> MakeRun:
    """Writes a run folder as a training leaves it."""

    def make(
        folder: Path,
        row: str,
        seed: int,
        score: float | None,
        *,
        table: str = "t",
        published: float | None = None,
        axes: dict[str, Any] | None = None,
        commit: str | None = "abc",
        packages: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
        step: int = 100,
        figures: dict[str, float] | None = None,
        counts: tuple[Any, Any, Any] | None = None,
        ids: list[str] | None = None,
        fingerprint: str | None = None,
        evaluations: dict[str, float] | None = None,
        references: dict[str, float] | None = None,
    ) -> RunFolder:
        run = RunFolder(folder / table / row / f"seed{seed}")
        own = {"loss": row, "df": 4 if row == "rmi" else None, "dataset": "camvid", "model": "deeplab_v3plus"}
        run.record = {
            "name": f"{table}/{row}",
            "table": table,
            "row": row,
            "seed": seed,
            "axes": {**own, "max_steps": 100, "lr": 0.1, **(axes or {}), "seed": seed},
            "reference": {
                **({"metric": "test/mIoU", "value": published, "source": "a paper"} if published else {}),
                "evaluations": {
                    words: {"metric": "test/mIoU", "value": value} for words, value in (references or {}).items()
                },
            },
            "data": {"fingerprint": fingerprint},
            "git_commit": commit,
            "environment": {"python": "3.12.1", "packages": {**PACKAGES, **(packages or {})}, "accelerators": []},
        }
        run.config = config or {}
        run.update_state(status="running" if score is None else "done", step=step)
        if score is not None:
            run.summary = {"test/mIoU": score, "train/images_per_s": 10.0 * seed, **(figures or {})}
        if counts is not None:
            names = ids or [f"image{index}" for index in range(len(counts[0]))]
            arrays = dict(zip(("intersection", "predicted", "target"), map(np.asarray, counts), strict=True))
            np.savez(run.path / "test_images.npz", id=np.array(names), **arrays)
        for words, its_score in (evaluations or {}).items():
            evaluation = RunFolder(run.path / "evaluations" / words.replace(":", "-"))
            evaluation.record = {"evaluation": {"words": words, "postprocess": words, "checkpoint": "0f"}}
            evaluation.summary = {"test/mIoU": its_score}
        return run

    return make


@pytest.fixture
def add_pictures() -> Callable[..., None]:
    """Saves test pictures as the callback does: the prediction is wrong in the first `wrong` columns."""

    def add(run: RunFolder, names: list[str], *, wrong: int, size: tuple[int, int] = (24, 32)) -> None:
        height, width = size
        truth = np.repeat(np.arange(height) * 3 // height, width).reshape(size)
        preds = truth.copy()
        preds[:, :wrong] = (preds[:, :wrong] + 1) % 3
        truth[0, 0] = 255
        image = np.full((*size, 3), 90, dtype=np.uint8)
        samples = dict.fromkeys(names, (image, truth, preds))
        write_samples(run.path / "images" / "test.zip", samples, PALETTE)
        matrix = np.zeros((3, 3), dtype=np.int64)
        np.add.at(matrix, (truth[truth != 255], preds[truth != 255]), 1)
        np.savez(run.confusion_file, matrix=matrix, class_names=CLASSES)

    return add


@pytest.fixture(scope="session")
def chromium(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """The driver of a headless Chromium."""
    module = load_file(Path(__file__).with_name("chromium.py"))
    if module.find() is None:
        pytest.skip("no Chromium here (on Debian: apt-get install chromium)")
    return module


@pytest.fixture
def open_page(chromium: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Opens a file in a browser of its own."""
    pages = []

    def open_file(file: Path, **options: Any) -> Any:
        page = chromium.Page(tmp_path_factory.mktemp("profile"), **options)
        pages.append(page)
        page.open(file)
        return page

    yield open_file
    for page in pages:
        page.close()
