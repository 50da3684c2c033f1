"""Released networks: what is packed, fetched and scored again."""

import hashlib
import shutil
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from beyondpixel.datamodules.fetching import DownloadError
from beyondpixel.experiments.build import build_data
from beyondpixel.experiments.cli import main
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.job import run_job
from beyondpixel.experiments.plan import plan_runs
from beyondpixel.experiments.released.loading import ENTRIES, RELEASES_VARIABLE, load_released, read_entry, score
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.lightning_modules import DeepLabModule

SMALL = {
    "model.encoder": "tu-test_resnet",  # a ResNet with few channels
    "model.warmup_iters": 0,
    "trainer.max_steps": 2,
    "trainer.accelerator": "cpu",
    "trainer.logger": False,
    "data.image_size": [48, 64],
    "data.batch_size": 2,
    "data.num_workers": 0,
    **{f"data.num_{split}": 3 for split in ("train", "val", "test")},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    (run,) = plan_runs(["demo/rmi"], seeds=[1], output=tmp_path_factory.mktemp("outputs"), overrides=SMALL)
    run.prepare()
    run_job(run.folder.path)
    return run.folder


@pytest.fixture(scope="module")
def packed(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the released network `tiny`."""
    folder = tmp_path_factory.mktemp("releases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache_of_the_maker")))
        main(["release", "--ckpt_path", str(trained.last_checkpoint), "--name", "tiny", "--output", str(folder)])
    return folder


@pytest.fixture
def releases(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of these files, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(RELEASES_VARIABLE, raising=False)
    return Path(shutil.copytree(packed, tmp_path / "up"))


@pytest.fixture
def address(releases: Path) -> Iterator[str]:
    """Of a server of our own, which has the release's files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(releases)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def miou_by_hand(module: torch.nn.Module, entry: dict) -> float:
    """One confusion matrix over the test images, each predicted alone."""
    data = build_data(entry)
    confusion = np.zeros((data.num_classes, data.num_classes))
    for sample in data.load_split("test"):
        image = torch.from_numpy(sample.image).permute(2, 0, 1)[None] / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
        with torch.no_grad():
            preds = module((image - mean) / std).argmax(1)[0].numpy()
        valid = sample.mask != data.ignore_index
        np.add.at(confusion, (sample.mask[valid], preds[valid]), 1)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return float((confusion.diagonal()[union > 0] / union[union > 0]).mean())


def test_what_is_fetched_is_what_was_trained_and_has_the_score_that_was_written(
    trained: RunFolder, releases: Path, address: str
) -> None:
    entry = read_entry(releases / "tiny.yaml")
    archive = releases / "tiny.zip"
    assert entry["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    with zipfile.ZipFile(archive) as packed:
        assert packed.namelist() == ["README.md", "config.json", "model.safetensors"]
        assert "test" in packed.read("README.md").decode()
        weights = load(packed.read("model.safetensors"))

    module = load_released(releases / "tiny.yaml", source=address)
    assert isinstance(module, DeepLabModule)
    checkpoint = torch.load(trained.last_checkpoint, weights_only=True)["state_dict"]
    for name, parameter in module.network.named_parameters("network"):
        assert (weights[name].dtype, parameter.dtype) == (torch.float16, torch.float32)
        assert torch.equal(parameter, checkpoint[name].half().float()), name
    again = score(module, entry)
    assert {name: round(again[name], 6) for name in entry["scores"]} == entry["scores"]
    assert entry["scores"]["test/mIoU"] == pytest.approx(miou_by_hand(module, entry), abs=1e-6)


def test_a_folder_is_a_source_and_what_is_kept_needs_none(releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RELEASES_VARIABLE, str(releases))
    first = load_released(releases / "tiny.yaml")
    (releases / "tiny.zip").unlink()
    second = load_released(releases / "tiny.yaml")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_other_bytes_are_refused(releases: Path, address: str) -> None:
    content = bytearray((releases / "tiny.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (releases / "tiny.zip").write_bytes(content)
    with pytest.raises(DownloadError, match=r"tiny.zip could not be downloaded:\n.*has other content"):
        load_released(releases / "tiny.yaml", source=address)


def test_what_is_missing_is_named(releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no released network shape_lite0_rmi; did you mean shapes_lite0_rmi\?"):
        load_released("shape_lite0_rmi")
    with pytest.raises(UserError, match="tiny.zip is a release file and not part of the package: give its folder or"):
        load_released(releases / "tiny.yaml")


def test_a_large_network_is_no_release(trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beyondpixel.experiments.released.release.MAX_BYTES", 1000)
    words = ["--ckpt_path", str(trained.last_checkpoint), "--name", "large", "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"large takes \d+\.\d MB, more than 0; choose a smaller encoder"):
        main(["release", *words])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(file.stem for file in ENTRIES.glob("*.yaml")))
def test_a_released_network_has_its_score(name: str) -> None:
    """Another processor rounds otherwise, which may turn a pixel at a boundary: 120 of 1.2 million are 0.01 points."""
    try:
        module = load_released(name)
    except (UserError, DownloadError) as error:
        pytest.skip(f"the release file is not at hand: {error}")
    entry = read_entry(name)
    found = score(module, entry)
    for metric, value in entry["scores"].items():
        assert found[metric] == pytest.approx(value, abs=1e-3), metric
