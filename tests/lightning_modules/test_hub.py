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

import pytest
import torch
from torch import nn

from beyondpixel.lightning_modules import DeepLabModule, SegmentationModule


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
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]
    loaded = DeepLabModule.from_pretrained(tmp_path / "new" / "folder")
    assert not loaded.training
    assert loaded.hparams == module.hparams
    assert torch.equal(logits(loaded), logits(module))
    other = DeepLabModule.from_pretrained(tmp_path / "new" / "folder", loss="ce", lr=0.5)
    assert (type(other.loss).__name__, other.hparams["lr"]) == ("CrossEntropyLoss", 0.5)
    assert torch.equal(logits(other), logits(module))


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
    with pytest.raises(FileNotFoundError, match="there is no folder no/such/folder, and it is no name of a repository"):
        Pixelwise.from_pretrained("no/such/folder")
    Pixelwise(3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a Pixelwise: load it with that class, not with DeepLabModule"):
        DeepLabModule.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit its config.json and \{'num_classes': 4"):
        Pixelwise.from_pretrained(tmp_path, num_classes=4)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="was not written by save_pretrained: it lacks hyper_parameters"):
        Pixelwise.from_pretrained(tmp_path)


def test_offline_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ConnectionError, match=r"someone/something: no such local folder, and the hub does not give conf"
    ):
        Pixelwise.from_pretrained("someone/something", cache_dir=tmp_path, local_files_only=True)


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
    assert set(Hub.files) == {"config.json", "model.safetensors"}
