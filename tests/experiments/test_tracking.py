"""W&B goes offline by itself and says why."""

import socket
from pathlib import Path

import pytest
import wandb

from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.experiments.tracking import RunFolderLogger, offline_reason, wandb_logger


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc


def test_without_a_key() -> None:
    assert offline_reason() == "no API key found"


def test_the_user_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert offline_reason() == "WANDB_MODE=offline"


def test_a_server_that_cannot_be_reached_and_one_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(wandb, "api", FakeApi(f"http://127.0.0.1:{port}"))
        assert offline_reason() is None
    assert offline_reason() == "127.0.0.1 cannot be reached"


class FakeApi:
    """What `wandb.api` answers when there is a key."""

    api_key = "k" * 40

    def __init__(self, address: str) -> None:
        self.address = address

    def settings(self, name: str) -> str:
        assert name == "base_url"
        return self.address


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
