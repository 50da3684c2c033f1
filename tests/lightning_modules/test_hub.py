"""Modules saved to folders and to a hub, which here is a small server of our own."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from beyondpixel.lightning_modules import DeepLabModule, MCIBIModule, SegmentationModule


class Pixelwise(SegmentationModule):
    def configure_network(self) -> nn.Module:
        return nn.Conv2d(3, self.num_classes, kernel_size=1)


def logits(module: SegmentationModule) -> torch.Tensor:
    with torch.no_grad():
        return module(torch.linspace(-2, 2, 3 * 33 * 41).view(1, 3, 33, 41))


def test_a_deeplab_there_and_back(tmp_path: Path) -> None:
    module = DeepLabModule(
        4,
        encoder="resnet18",
        encoder_weights=None,
        loss={"name": "rmi", "region_size": 2},
        class_names=["a", "b", "c", "d"],
        atrous_rates=(1, 2, 3),
    ).eval()
    module.save_pretrained(tmp_path / "new" / "folder")
    names = sorted(file.name for file in (tmp_path / "new" / "folder").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    loaded = DeepLabModule.from_pretrained(tmp_path / "new" / "folder")
    assert not loaded.training
    assert loaded.hparams == module.hparams
    assert torch.equal(logits(loaded), logits(module))
    other = DeepLabModule.from_pretrained(tmp_path / "new" / "folder", loss="ce", lr=0.5)
    assert (type(other.loss).__name__, other.hparams["lr"]) == ("CrossEntropyLoss", 0.5)
    assert torch.equal(logits(other), logits(module))


def test_a_loaded_module_trains_like_a_new_one(data: Any, trainer: Any, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"encoder": "resnet18", "channels": 16, "attention_channels": 8}
    MCIBIModule(3, **arguments).save_pretrained(tmp_path)
    loaded = MCIBIModule.from_pretrained(tmp_path, lr=0.001)
    norms = [module for module in loaded.network.encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    fit = trainer(max_steps=1)
    fit.fit(loaded, data)
    assert {"train/loss_auxiliary", "train/loss_context"} <= fit.callback_metrics.keys()
    assert {int(norm.num_batches_tracked) for norm in norms} == {1}


def test_a_part_that_is_frozen_in_evaluation_mode_stays_so(data: Any, trainer: Any, tiny_module: Any) -> None:
    module = tiny_module()
    module.network.encoder.eval()
    before = module.network.encoder[1].running_mean.clone()
    trainer(max_steps=1).fit(module, data)
    assert torch.equal(module.network.encoder[1].running_mean, before)


def test_a_compiled_network_is_saved_as_the_one_it_was_made_of(tmp_path: Path) -> None:
    module = Pixelwise(3, loss="adaptive_affinity").eval()
    expected = logits(module)
    module.network, module.loss = (torch.compile(part, backend="eager") for part in (module.network, module.loss))
    module.save_pretrained(tmp_path)
    assert torch.equal(logits(Pixelwise.from_pretrained(tmp_path)), expected)


def test_the_loss_is_not_part_of_what_is_shared(tmp_path: Path) -> None:
    """A loss with weights of its own, and a module as loss, which no file could hold."""
    for loss in ("adaptive_affinity", nn.CrossEntropyLoss(weight=torch.ones(3))):
        module = Pixelwise(3, loss=loss).eval()
        module.save_pretrained(tmp_path)
        assert torch.equal(logits(Pixelwise.from_pretrained(tmp_path, loss="ce")), logits(module))
        assert torch.equal(logits(Pixelwise.from_pretrained(tmp_path)), logits(module))


def test_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config.json; expected a folder that save_pretrained wrote"):
        Pixelwise.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder no/such/folder, and it is not a repository name"):
        Pixelwise.from_pretrained("no/such/folder")
    Pixelwise(3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a Pixelwise: load it with that class, not with DeepLabModule"):
        DeepLabModule.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit its config.json and \{'num_classes': 4"):
        Pixelwise.from_pretrained(tmp_path, num_classes=4)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="was not written by save_pretrained: it lacks hyper_parameters"):
        Pixelwise.from_pretrained(tmp_path)


class CityModule:
    """What the data modules of this package say about their data."""

    dataset_name = "City"
    class_names: ClassVar = ["sky", "road", "car"]
    palette: ClassVar = [(0, 0, 255), (9, 9, 9), (200, 0, 0)]
    mean = (0.4, 0.5, 0.6)
    std = (0.2, 0.25, 0.3)
    ignore_index = 255
    image_size = None


def test_what_a_user_must_know_of_the_data_is_saved(tmp_path: Path) -> None:
    module = Pixelwise(3)
    assert module.data_description == {}
    module.save_pretrained(tmp_path / "first", datamodule=CityModule())
    loaded = Pixelwise.from_pretrained(tmp_path / "first")
    description = loaded.data_description
    assert (description["mean"], description["std"]) == ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    assert (description["class_names"], description["palette"][2]) == (["sky", "road", "car"], [200, 0, 0])
    assert "normalized as (x - mean) / std" in description["input"]
    loaded.save_pretrained(tmp_path / "second")  # it is handed on
    assert Pixelwise.from_pretrained(tmp_path / "second").data_description == description
    card = (tmp_path / "second" / "README.md").read_text()
    assert "| 2 | car | #c80000 |" in card
    assert "no run folder was given" in card
    assert "library_name: beyondpixel" in card
    Pixelwise(2).save_pretrained(tmp_path / "second")  # another model in its place
    assert "| 2 | car |" not in (tmp_path / "second" / "README.md").read_text()


def test_data_may_be_described_by_tensors_and_arrays(tmp_path: Path) -> None:
    data = CityModule()
    data.mean, data.std = torch.tensor([0.5, 0.25, 0.75]), np.array([0.25, 0.5, 0.25])  # type: ignore[assignment]
    data.palette = torch.tensor(CityModule.palette, dtype=torch.uint8)  # type: ignore[misc, assignment]
    data.ignore_index = np.int64(255)  # type: ignore[assignment]
    Pixelwise(3).save_pretrained(tmp_path, datamodule=data)
    description = Pixelwise.from_pretrained(tmp_path).data_description
    assert (description["mean"], description["std"]) == ([0.5, 0.25, 0.75], [0.25, 0.5, 0.25])
    assert (description["palette"], description["ignore_index"]) == ([[0, 0, 255], [9, 9, 9], [200, 0, 0]], 255)
    assert "| 2 | car | #c80000 |" in (tmp_path / "README.md").read_text()


def test_the_card_tells_recipe_seed_and_scores_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    module = Pixelwise(3)
    with pytest.raises(FileNotFoundError, match=r"has no config.yaml; expected the folder of a tested run"):
        module.save_pretrained(tmp_path / "saved", run=run)
    config = {
        "seed_everything": 7,
        "data": {"class_path": "CityModule", "init_args": {"train_split": "trainval"}},
        "model": {"class_path": "Pixelwise", "init_args": {"lr": 0.02, "loss": {"name": "rmi"}}},
        "trainer": {"max_steps": 1234, "logger": False},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "run.json").write_text(json.dumps({"seed": 7, "git_commit": "abc123"}))
    (run / "summary.json").write_text(json.dumps({"test/mIoU": 0.61234567, "test/IoU_small": None, "val/mIoU": 0.5}))
    module.save_pretrained(tmp_path / "saved", run=run, datamodule=CityModule())
    card = (tmp_path / "saved" / "README.md").read_text()
    for expected in (
        "# Pixelwise on City",
        "Seed 7, commit `abc123`",
        "train_split: trainval",
        "name: rmi",
        "max_steps: 1234",
        "| mIoU | 0.6123 |",
        "| IoU_small | none |",
        "## Limits",
        "MIT",
    ):
        assert expected in card
    assert "0.5 |" not in card  # of validation


def test_offline_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = r"someone/something: no such local folder, not in the local cache, and not on the hub"
    with pytest.raises(ConnectionError, match=sentence):
        Pixelwise.from_pretrained("someone/something", cache_dir=tmp_path, local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=sentence):
        Pixelwise.from_pretrained("someone/something", cache_dir=tmp_path)
    with pytest.raises(ConnectionError, match=r"someone/something: the hub .* does not answer: check the network"):
        Pixelwise(3).push_to_hub("someone/something")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload of small files and a download need."""

    files: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def answer(self, content: Any, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/repos/create"):
            self.answer({"url": f"http://{self.headers['Host']}/someone/pixelwise", "name": "someone/pixelwise"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"http://{self.headers['Host']}/someone/pixelwise/commit/c1", "commitOid": "c1"})
        else:
            self.answer({})

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if "/resolve/" in self.path and name in self.files:
            self.answer(self.files[name], ETag=f'"{name}"', X_Repo_Commit="c" * 40)
        else:
            self.answer({"id": "someone/pixelwise", "sha": "c" * 40, "siblings": [], "private": False})

    do_HEAD = do_GET  # noqa: N815 - the server's names


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


SHARING = """
import torch
from torch import nn
from beyondpixel.lightning_modules import SegmentationModule

class Pixelwise(SegmentationModule):
    def configure_network(self):
        return nn.Conv2d(3, self.num_classes, kernel_size=1)

module = Pixelwise(5)
print(module.push_to_hub("someone/pixelwise", token="hf_example"))
loaded = Pixelwise.from_pretrained("someone/pixelwise", token="hf_example")
again = Pixelwise.from_pretrained("someone/pixelwise", local_files_only=True)
print(torch.equal(loaded.network.weight, module.network.weight), torch.equal(again.network.bias, module.network.bias))
"""


@pytest.mark.slow
def test_upload_and_download(hub: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SHARING], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True True"
    assert "/someone/pixelwise/commit/" in done.stdout
    assert set(Hub.files) == {"README.md", "config.json", "model.safetensors"}
