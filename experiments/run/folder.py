"""Run folder: all files and the status of one trained model.

The folder depends on the spec and the seed alone, so a rerun and a resume find it::

    outputs/<table>/<row>/seed<k>/
        config.yaml       resolved config: `beyondpixel fit --config` repeats the run
        run.json          name, seed, axes, reference, git commit, environment, W&B id
        changes.diff      uncommitted changes in the code, if any
        state.json        status, step, last error
        metrics.jsonl     every logged metric, one line per step
        summary.json      the last value of every metric, test scores included
        confusion.npz     test confusion matrix and class names
        test_images.npz   pixel counts of each test image; val_images.npz if validated separately
        evaluations/      one folder per additional test of the trained model, such as crf-5
        checkpoints/      last.ckpt, best.ckpt
        images/           predictions on a few fixed images; test.zip contains some as single files
        skipped_files.txt training files that `on_error: skip` left out, if any
        log.txt           output of a launched run
        lock              held while the run is active
        wandb/            W&B's own files
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import yaml

from beyondpixel.experiments.disk_space import writing
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.natural_order import natural_order
from beyondpixel.experiments.yaml_files import SafeLoader, check_depth


class Status(StrEnum):
    """Status of a run, with the values that state.json, the launcher and all tables use."""

    NEW = "new"  # not started
    QUEUED = "queued"  # handed to a scheduler
    RUNNING = "running"
    STOPPED = "stopped"  # by a signal or a time limit, with a checkpoint: it can be resumed
    FAILED = "failed"
    TRAINED = "trained"  # its test or an evaluation is missing
    DONE = "done"
    DAMAGED = "damaged"  # a file of its folder cannot be read

    @property
    def is_finished(self) -> bool:
        """Whether there is a trained model, which is replaced only on request."""
        return self in (Status.TRAINED, Status.DONE)

    def has_failed(self, error: str | None) -> bool:
        """Whether a run with this status and error failed: before it was trained, or in a later evaluation."""
        return self is Status.FAILED or (self is Status.TRAINED and bool(error))


class DamagedRunError(UserError):
    """A file of a run folder cannot be read."""

    def __init__(self, file: Path, problem: str) -> None:
        super().__init__(
            f"{file} is damaged ({problem}): restore it from a copy, or remove {file.parent} and launch the run again"
        )


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file atomically: readers see, and a crash leaves, the old or the new content and never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with writing(path), os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp creates files that only their owner can read
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)  # it would keep a full disk full
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write content from memory atomically, as `replacing` does."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


class RunFolder:
    """Read and write the files of one run folder.

    Args:
        path: the folder; it need not exist yet.

    Example:
        >>> import tempfile
        >>> run = RunFolder(tempfile.mkdtemp())
        >>> run.status.value
        'new'
        >>> run.update_state(status=Status.RUNNING, step=10)
        >>> run.status.value, run.state["step"]
        ('running', 10)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.confusion_file = self.path / "confusion.npz"
        self.log_file = self.path / "log.txt"
        self.lock_file = self.path / "lock"
        self.last_checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.changes_file = self.path / "changes.diff"
        self.previous_checkpoint = self.path / "checkpoints" / "previous.ckpt"

    def images_file(self, stage: str) -> Path:
        """File with the pixel counts of each image of the evaluation `test` or `val`."""
        return self.path / f"{stage}_images.npz"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume the run from, damaged or not."""
        return self.last_checkpoint.exists() or self.previous_checkpoint.exists()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, empty if the run was never started."""
        if not self.config_file.exists():
            return {}
        try:
            text = self.config_file.read_text(encoding="utf-8")
            check_depth(text)
            content = yaml.load(text, SafeLoader)  # noqa: S506 (a safe loader, for numbers as PyYAML writes them)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise DamagedRunError(self.config_file, "not valid YAML") from error
        return _mapping(self.config_file, content)

    @config.setter
    def config(self, config: dict[str, Any]) -> None:
        write_atomically(self.config_file, yaml.safe_dump(config, sort_keys=False))

    @property
    def record(self) -> dict[str, Any]:
        """Name, seed, axes, reference, versions (run.json)."""
        return self._read("run.json")

    @record.setter
    def record(self, record: dict[str, Any]) -> None:
        self._write("run.json", record)

    @property
    def summary(self) -> dict[str, float]:
        """The last value of every metric (summary.json)."""
        return _with_nan(self._read("summary.json"))

    @summary.setter
    def summary(self, summary: dict[str, float]) -> None:
        self._write("summary.json", _plain_json(summary))

    @property
    def state(self) -> dict[str, Any]:
        """`status`, `step`, `max_steps`, `error`, and `job` of a SLURM job (state.json)."""
        state = {"status": Status.NEW.value, **self._read("state.json")}
        if state["status"] not in list(Status):
            raise DamagedRunError(self.path / "state.json", f"unknown status {state['status']!r}")
        return state

    def update_state(self, **changes: Any) -> None:
        """Change some entries of the state and keep the others; a damaged state is replaced."""
        try:
            state = self.state
        except DamagedRunError:
            state = {}
        self._write("state.json", {**state, **changes})

    @property
    def status(self) -> Status:
        """Status of the run; DAMAGED if one of its files cannot be read."""
        return Status.DAMAGED if self.damage else Status(self.state["status"])

    @property
    def damage(self) -> str | None:
        """Which file cannot be read, and the remedy; None if all can be read."""
        try:
            _ = self.state, self.record, self.config, self.summary
        except DamagedRunError as error:
            return str(error)
        return None

    def append_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Add one line of metrics."""
        self.path.mkdir(parents=True, exist_ok=True)
        with writing(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **_plain_json(metrics)}) + "\n")

    def metrics(self) -> Iterator[dict[str, float]]:
        """The lines of metrics.jsonl up to the first that is not a JSON object, such as one cut short by a crash."""
        if not self.metrics_file.exists():
            return
        with self.metrics_file.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    metrics = json.loads(line)
                except (json.JSONDecodeError, RecursionError):
                    return
                if not isinstance(metrics, dict):
                    return
                yield _with_nan(metrics)

    @property
    def metrics_size(self) -> int:
        """Bytes logged so far."""
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def cut_metrics(self, size: int) -> None:
        """Drop what was logged after a checkpoint, because a resumed run logs it again.

        Args:
            size: bytes of metrics.jsonl when the checkpoint was saved.
        """
        if self.metrics_size > size:
            os.truncate(self.metrics_file, size)

    def evaluations(self) -> list[RunFolder]:
        """Folders of the additional tests of the trained model, such as `evaluations/crf-5`."""
        found = sorted((self.path / "evaluations").glob("*/run.json"), key=natural_order)
        return [RunFolder(file.parent) for file in found]

    def clear(self) -> None:
        """Remove the files that a run wrote, W&B's included; other files in the folder stay."""
        for pattern in (
            *("config.yaml", "run.json", "changes.diff", "state.json", "metrics.jsonl", "summary.json", "log.txt"),
            *("confusion.npz", "*_images.npz", "checkpoints/*.ckpt", "checkpoints/.*.part"),
            *("images/*.png", "images/test.zip", "skipped_files.txt"),
        ):
            for file in self.path.glob(pattern):
                file.unlink()
        for name in ("wandb", "evaluations"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def remove_temporary_files(self) -> None:
        """Remove temporary files that killed writes left."""
        for pattern in (".*.part", "checkpoints/.*.part", "evaluations/*/.*.part"):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)

    def _read(self, name: str) -> dict[str, Any]:
        file = self.path / name
        if not file.exists():
            return {}
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # not JSON, or not text
            raise DamagedRunError(file, "not valid JSON") from error
        return _mapping(file, content)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")


def _mapping(file: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DamagedRunError(file, f"expected keys and values, got {type(content).__name__}")
    return content


def _plain_json(metrics: dict[str, float]) -> dict[str, float | None]:
    """Replace NaN and infinity by None (null): JSON has neither, and readers other than Python's reject them."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _with_nan(content: dict[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in content.items()}


def find_runs(*folders: str | Path) -> list[RunFolder]:
    """Find all trained runs at or below some folders, each once, without evaluations, in the natural order of paths.

    Linked folders are searched as well, such as a table on another disk.

    Raises:
        UserError: if a folder does not exist, or one below it cannot be read.

    Example:
        >>> import tempfile
        >>> find_runs(tempfile.mkdtemp())
        []
    """
    missing = [str(folder) for folder in folders if not Path(folder).is_dir()]
    if missing:
        raise UserError(f"no such folder: {', '.join(missing)}; expected one that `beyondpixel launch` wrote to")
    runs: dict[Path, RunFolder] = {}
    for folder in folders:
        found = sorted((path for path in _run_folders(folder) if path.parent.name != "evaluations"), key=natural_order)
        runs |= {path.resolve(): RunFolder(path) for path in found}
    return list(runs.values())


def _run_folders(folder: str | Path) -> Iterator[Path]:
    visited: set[str] = set()
    for path, below, names in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        real_path = os.path.realpath(path)
        if real_path in visited:  # through a link, which may lead upwards
            below.clear()
        visited.add(real_path)
        below.sort(key=lambda name: os.path.islink(os.path.join(path, name)))  # noqa: PTH114, PTH118
        if "run.json" in names:
            yield Path(path)


def _raise_unreadable(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):  # removed meanwhile
        return
    raise UserError(f"{error.filename}: {error.strerror}; make it readable, or name folders without it") from error
