"""A run on disk: everything that is known about one trained model lies in one folder.

The folder depends on the spec and the seed alone, so a rerun and a resume find it::

    outputs/<table>/<row>/seed<k>/
        config.yaml       resolved LightningCLI config: `beyondpixel fit --config` repeats the run
        run.json          who the run is: name, seed, axes, reference, git commit, environment, W&B id
        state.json        where it is: status, step, last error
        metrics.jsonl     every logged figure, one line a step
        summary.json      the last value of every figure, test scores included
        confusion.npz     test confusion matrix and class names
        test_images.npz   areas of each test image (image_areas.py); val_images.npz where validated on its own
        checkpoints/      last.ckpt, best.ckpt
        images/           predictions on a fixed few images; test/ holds some one by one
        log.txt           what a launched run said
        lock              held while the run goes on, says who holds it
        wandb/            W&B's own files
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from beyondpixel.experiments.natural_order import natural_order

Status = Literal["new", "queued", "running", "interrupted", "failed", "trained", "done"]
FINISHED: tuple[Status, ...] = ("trained", "done")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old or the new content and never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes files that only their owner can read
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class RunFolder:
    """Reads and writes one run's folder.

    Args:
        path: the folder; it need not exist yet.

    Example:
        >>> import tempfile
        >>> run = RunFolder(tempfile.mkdtemp())
        >>> run.state["status"]
        'new'
        >>> run.update_state(status="running", step=10)
        >>> run.state["status"], run.finished
        ('running', False)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """Every logged figure, one JSON object a line, with its `step`."""
        return self.path / "metrics.jsonl"

    @property
    def confusion_file(self) -> Path:
        """Test confusion matrix, rows are the truth (NumPy archive with `matrix` and `class_names`)."""
        return self.path / "confusion.npz"

    def images_file(self, stage: str) -> Path:
        """Areas of each image of the evaluation `test` or `val`, for `ImageAreas.load`."""
        return self.path / f"{stage}_images.npz"

    @property
    def log_file(self) -> Path:
        """What a launched run said."""
        return self.path / "log.txt"

    @property
    def lock_file(self) -> Path:
        """Held by the process that the run belongs to."""
        return self.path / "lock"

    @property
    def last_checkpoint(self) -> Path:
        """The newest checkpoint; the papers evaluate this one."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, empty when the run was never started."""
        return yaml.safe_load(self.config_file.read_text()) if self.config_file.exists() else {}

    @config.setter
    def config(self, config: dict[str, Any]) -> None:
        write_atomically(self.config_file, yaml.safe_dump(config, sort_keys=False))

    @property
    def record(self) -> dict[str, Any]:
        """Who the run is (run.json)."""
        return self._read("run.json")

    @record.setter
    def record(self, record: dict[str, Any]) -> None:
        self._write("run.json", record)

    @property
    def summary(self) -> dict[str, float]:
        """The last value of every figure (summary.json)."""
        return _figures(self._read("summary.json"))

    @summary.setter
    def summary(self, summary: dict[str, float]) -> None:
        self._write("summary.json", _plain_json(summary))

    @property
    def state(self) -> dict[str, Any]:
        """Where the run is (state.json): `status`, `step`, `max_steps`, `error`, and `job` of a SLURM job."""
        return {"status": "new", **self._read("state.json")}

    def update_state(self, **changes: Any) -> None:
        """Change some entries of the state and keep the others."""
        self._write("state.json", {**self.state, **changes})

    @property
    def finished(self) -> bool:
        """Whether there is a result here that must not be overwritten unasked."""
        return self.state["status"] in FINISHED

    def append_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Add one line of figures."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.metrics_file.open("a") as file:
            file.write(json.dumps({"step": step, **_plain_json(metrics)}) + "\n")

    def metrics(self) -> Iterator[dict[str, float]]:
        """The lines of metrics.jsonl; a last line that a crash cut short is left out."""
        if not self.metrics_file.exists():
            return
        with self.metrics_file.open() as file:
            for line in file:
                try:
                    yield _figures(json.loads(line))
                except json.JSONDecodeError:
                    return

    @property
    def metrics_size(self) -> int:
        """Bytes logged so far."""
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def cut_metrics(self, size: int) -> None:
        """Forget what was logged after a checkpoint, because a resumed run will log it again.

        Args:
            size: the bytes that were there when the checkpoint was saved.
        """
        if self.metrics_size > size:
            os.truncate(self.metrics_file, size)

    def clear(self) -> None:
        """Remove what a run wrote, and only that: other files in the folder stay."""
        for name in (
            "config.yaml",
            "run.json",
            "state.json",
            "metrics.jsonl",
            "summary.json",
            "log.txt",
        ):
            (self.path / name).unlink(missing_ok=True)
        for file in (self.confusion_file, self.images_file("test"), self.images_file("val")):
            file.unlink(missing_ok=True)
        for pattern in ("checkpoints/*.ckpt", "checkpoints/.*.part", "images/*.png", "images/test/*"):
            for file in self.path.glob(pattern):
                file.unlink()

    def _read(self, name: str) -> dict[str, Any]:
        file = self.path / name
        return json.loads(file.read_text()) if file.exists() else {}

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")


def _plain_json(figures: dict[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN and no infinity, and readers other than Python's refuse them: null stands for both."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _figures(content: dict[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in content.items()}


def find_runs(folder: str | Path) -> list[RunFolder]:
    """All runs at or below a folder, in the natural order of their paths.

    Example:
        >>> import tempfile
        >>> find_runs(tempfile.mkdtemp())
        []
    """
    return [RunFolder(file.parent) for file in sorted(Path(folder).rglob("run.json"), key=natural_order)]
