"""W&B goes offline by itself and says why."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import pytest
import wandb
from pytorch_lightning.loggers import WandbLogger

from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.experiments.tracking import RunFolderLogger, offline_reason, wandb_logger


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


def test_a_server_that_cannot_be_reached_and_one_that_can(tmp_path: Path) -> None:
    """In a process of its own, because W&B reads its settings once."""
    code = "from beyondpixel.experiments.tracking import offline_reason; print(offline_reason())"

    def ask(port: int) -> str:
        account = {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "HOME": str(tmp_path)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env={**os.environ, **account}, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ask(port) == "None"
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
    again.log_metrics({"train/loss": 0.5}, step=3)
    again.finalize("success")
    assert RunFolder(tmp_path).summary == {"train/loss": 0.5, "val/mIoU": 0.5}


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
