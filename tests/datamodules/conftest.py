"""Small real files in the public layouts."""

import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beyondpixel.datamodules import camvid

MakeCamVid = Callable[..., Path]


@pytest.fixture
def make_camvid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCamVid:
    """Write a CamVid folder with a few random images, and let its counts pass for the full ones."""

    def make(counts: dict[str, int], size: tuple[int, int] = (36, 48)) -> Path:
        root = tmp_path / "CamVid"
        rng = np.random.default_rng(0)
        for split, count in counts.items():
            lines = []
            for index in range(count):
                name = f"{split}_{index:02d}.png"
                image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                mask = rng.integers(0, 12, size, dtype=np.uint8)
                for folder, array in ((split, image), (f"{split}annot", mask)):
                    (root / folder).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(root / folder / name)
                lines.append(f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n")
            (root / f"{split}.txt").write_text("".join(lines))
        total = counts.get("train", 0) + counts.get("val", 0)
        monkeypatch.setattr(camvid, "COUNTS", {**counts, "trainval": total})
        return root

    return make


@pytest.fixture
def unused_tcp_port() -> int:
    """A port on this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
