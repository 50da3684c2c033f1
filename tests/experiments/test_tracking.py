"""W&B goes offline by itself and says why."""

import json
import os
import socket
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import torch
import wandb
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import WandbLogger
from torch.utils.data import DataLoader

from beyondpixel.experiments import recorder
from beyondpixel.experiments.axes import axes_of
from beyondpixel.experiments.cli import main
from beyondpixel.experiments.compare.confounders import is_uncommitted
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.recorder import identify
from beyondpixel.experiments.resolve import complete
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.tracking import ClassTable, RunFolderLogger, wandb_logger
from beyondpixel.experiments.wandb_log import read_records
from beyondpixel.experiments.wandb_server import offline_reason
from beyondpixel.lightning_modules import SegmentationModule


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc


def test_without_a_key() -> None:
    assert offline_reason() == "no API key found"


def test_a_key_in_netrc_counts(tmp_path: Path) -> None:
    host = urlparse(wandb.setup().settings.base_url).hostname
    (tmp_path / ".netrc").write_text(f"machine {host}\n  login user\n  password {'k' * 40}\n")
    assert offline_reason() in (None, f"{host} cannot be reached")
    (tmp_path / ".netrc").write_text("machine elsewhere.example\n  login user\n  password secret\n")
    assert offline_reason() == "no API key found"


def test_the_user_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert offline_reason() == "WANDB_MODE=offline"


def test_a_server_that_cannot_be_reached(tmp_path: Path) -> None:
    """In a process of its own, because W&B reads its settings once."""
    code = "from beyondpixel.experiments.wandb_server import offline_reason; print(offline_reason())"

    def ask(port: int) -> str:
        account = {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "HOME": str(tmp_path)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env={**os.environ, **account}, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert ask(port) == "127.0.0.1 cannot be reached"


def test_disabled_means_no_logger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_logger(RunFolder(tmp_path), {}, {}) is None


def test_summary_holds_the_last_of_every_figure(tmp_path: Path) -> None:
    logger = RunFolderLogger(RunFolder(tmp_path))
    logger.log_metrics({"train/loss": 2.0}, step=1)
    logger.log_metrics({"train/loss": 1.0, "val/mIoU": 0.5}, step=2)
    logger.finalize("success")
    again = RunFolderLogger(RunFolder(tmp_path))  # a resumed run
    again.log_metrics({"train/loss": 0.5, "test/mIoU": 0.4}, step=3)  # a test's scores come when it is complete
    again.finalize("success")
    assert RunFolder(tmp_path).summary == {"train/loss": 0.5, "val/mIoU": 0.5}


def test_the_record_of_a_resumed_run_has_the_commits_of_all_its_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = {**complete({})[0], "seed_everything": 1}
    folder = RunFolder(tmp_path)
    for commit in ("aaa-dirty", "bbb", "bbb"):
        monkeypatch.setattr(recorder, "git_commit", lambda commit=commit: commit)
        record = recorder.identify(folder, config, resumed=True)
    assert record["git_commit"] == folder.record["git_commit"] == "aaa-dirty, bbb"
    assert is_uncommitted(record["git_commit"])
    assert recorder.identify(folder, config)["git_commit"] == "bbb"  # begun anew


def test_what_wandb_groups_and_filters_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Group = row of a table, so that W&B averages over seeds; the seed apart; every axis an entry, null or not."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    axes = {"loss": "rmi", "df": 4, "memory": None, "model": "deeplab_v3plus", "dataset": "camvid", "seed": 2}
    record = {
        **{"name": "table4/rmi", "table": "table4", "row": "rmi", "seed": 2, "axes": axes, "wandb_id": "abcd"},
        **{"git_commit": "f00", "environment": {"python": "3"}, "reference": {"value": 65.1}},
    }
    logger = wandb_logger(RunFolder(tmp_path), {"trainer": {}}, record)
    assert isinstance(logger, WandbLogger)
    given = logger._wandb_init
    assert (given["name"], given["group"], given["job_type"]) == ("table4/rmi/seed2", "table4/rmi", "train")
    assert (given["id"], given["resume"], given["mode"]) == ("abcd", "allow", "offline")
    assert given["tags"] == ["table4", "rmi", "deeplab_v3plus", "camvid"]
    config = given["config"]
    assert {name: config[name] for name in axes} == axes
    assert (config["table"], config["row"], config["git_commit"]) == ("table4", "rmi", "f00")


def finished_records(folder: Path) -> list[Any]:
    """W&B's records once its process has written its last; `wandb.finish` may return before that."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(300):
        records = read_records(file)
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(
        f"W&B's file has no end after 30 s: {[record.WhichOneof('record_type') for record in records]}"
    )


LOSS = {"name": "rmi", "downsampling_factor": 5, "region_size": 1}


def test_what_lies_in_the_offline_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Project, group, job type, tags, flat axes with nulls, the seed apart, test scores and the table of classes."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    config, _ = complete({"model": {"class_path": "DeepLabModule", "init_args": {"loss": LOSS}}, "seed_everything": 7})
    folder = RunFolder(tmp_path / "outputs" / "camvid_small" / "rmi" / "seed7")
    record = {**identify(folder, config), "name": "camvid_small/rmi", "table": "camvid_small", "row": "rmi"}
    logger = wandb_logger(folder, config, record)
    assert logger is not None
    module = PerfectModule(num_classes=3, loss=LOSS, class_names=["sky", "tree", "car"])
    trainer = Trainer(
        logger=[logger],
        callbacks=[ClassTable()],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    truth = torch.tensor([[0, 0, 1, 255, 1, 0, 0, 1]]).expand(8, 8)[None]
    trainer.test(module, DataLoader([{"image": truth[0].float().expand(3, 8, 8), "mask": truth[0]}]), verbose=False)
    wandb.finish()

    records = finished_records(folder.path)
    (run,) = {record.run.run_id: record.run for record in records if record.HasField("run")}.values()
    assert (run.project, run.run_group, run.job_type) == ("beyondpixel", "camvid_small/rmi", "train")
    assert (run.display_name, run.run_id) == ("camvid_small/rmi/seed7", record["wandb_id"])
    assert sorted(run.tags) == ["camvid_small", "deeplab_v3plus", "rmi", "shapes"]
    updates = [item for record in records for item in (*record.run.config.update, *record.config.update)]
    logged = {item.key: json.loads(item.value_json) for item in updates if item.key}
    axes = axes_of(config)
    assert {axis: logged.get(axis, "missing") for axis in axes} == axes
    # Lightning must not lay the module's hyper-parameters, where loss is a dictionary, over the axes
    assert (logged["loss"], logged["df"], logged["memory"], logged["seed"]) == ("rmi", 5, None, 7)
    logged_loss = logged["config"]["model"]["init_args"]["loss"]
    assert {key: logged_loss[key] for key in LOSS} == LOSS
    summary: dict[str, Any] = {}
    for item in (item for record in records for item in record.summary.update):
        summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    assert summary["test/mIoU"] == 1.0
    assert summary["test/IoU/sky"] == 1.0
    table = {key: summary[f"test/classes/{key}"] for key in ("_type", "ncols", "nrows", "path")}
    assert (table["_type"], table["ncols"], table["nrows"]) == ("table-file", 4, 3)
    (file,) = folder.path.glob(f"wandb/offline-run-*/files/{table['path']}")
    content = json.loads(file.read_text())
    assert content["columns"] == ["class", "IoU", "boundary_IoU", "boundary_F"]
    assert content["data"][:2] == [["sky", 1.0, 1.0, 1.0], ["tree", 1.0, 1.0, 1.0]]
    hidden = [
        metric.glob_name for metric in (r.metric for r in records if r.HasField("metric")) if metric.options.hidden
    ]
    of_classes = {key for key in summary if key.rpartition("/")[2] in ("sky", "tree", "car")}
    assert len(of_classes) == 9
    assert not [key for key in of_classes if not any(fnmatch(key, pattern) for pattern in hidden)]


@pytest.mark.parametrize(("value", "artifacts"), [("end", 1), ("false", 0), (None, 0)])
def test_a_trained_model_is_an_artifact_if_it_is_asked_for(
    value: str | None, artifacts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_LOG_MODEL", raising=False)
    if value is not None:
        monkeypatch.setenv("WANDB_LOG_MODEL", value)
    small = ["--data.num_train=4", "--data.num_val=2", "--data.num_test=2", "--data.image_size=[48, 64]"]
    quick = ["--data.batch_size=2", "--data.num_workers=0", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    model = ["--model.encoder=tu-test_resnet", "--model.warmup_iters=0"]
    folder = RunFolder(tmp_path / "run")
    main(["fit", *small, *quick, *model, f"--trainer.default_root_dir={folder.path}"])
    logged = [record.artifact for record in finished_records(folder.path) if record.HasField("artifact")]
    models = [artifact for artifact in logged if artifact.type == "model"]
    assert len(models) == artifacts
    for artifact in models:
        assert artifact.name == f"model-{folder.record['wandb_id']}"
        (content,) = artifact.manifest.contents
        assert content.path == "last.ckpt"
        assert Path(content.local_path).read_bytes() == folder.last_checkpoint.read_bytes()


def test_log_model_is_ignored_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_LOG_MODEL", "checkpoint")
    assert wandb_logger(RunFolder(tmp_path), {}, {}) is None


def test_a_wrong_value_of_log_model_is_told_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_LOG_MODEL", "all")
    with pytest.raises(UserError, match="WANDB_LOG_MODEL=all: expected end"):
        wandb_logger(RunFolder(tmp_path), {}, {})


class PerfectModule(SegmentationModule):
    """Reads the class off the image."""

    def configure_network(self) -> torch.nn.Module:
        return Reader(self.num_classes)


class Reader(torch.nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scale = torch.nn.Parameter(torch.tensor(10.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        classes = images[:, 0].long().clamp(max=self.num_classes - 1)
        return self.scale * torch.nn.functional.one_hot(classes, self.num_classes).movedim(-1, 1).float()


KILLED = """
import os, signal, sys, warnings
from pathlib import Path
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.experiments.tracking import finish_wandb, wandb_logger

record = {"name": "t/r", "table": "t", "row": "r", "seed": 1, "axes": {"loss": "ce"}, "wandb_id": "abcd1234"}
logger = wandb_logger(RunFolder(sys.argv[1]), {}, {**record, "git_commit": None, "environment": {}})
logger.log_metrics({"a": 1.0}, step=0)
children = {child for file in Path("/proc/self/task").glob("*/children") for child in file.read_text().split()}
(service,) = children
os.kill(int(service), signal.SIGTERM)
os.waitpid(int(service), 0)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for step in range(1, 50):
        logger.log_metrics({"a": float(step)}, step=step)
finish_wandb()
print([str(warning.message) for warning in said])
os._exit(0)  # W&B's own goodbye, at exit, complains of the process as well
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds W&B's process as Linux tells it")
def test_a_run_outlives_wandbs_process(tmp_path: Path) -> None:
    """A cluster that cancels or preempts a job signals all of its processes at once."""
    # with W&B's variables it would share the process that serves this one
    environment = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    environment["WANDB_MODE"] = "offline"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert line.count("W&B stopped logging") == 1
