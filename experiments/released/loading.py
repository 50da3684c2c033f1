"""Load a released network from its release file, and score it.

Each released network has an entry here, NAME.yaml: the file's name and SHA-256, the module's class, the data that it
was scored on, and the scores. The file, a zip archive of what `save_pretrained` writes, is not part of this package.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pooch

from beyondpixel import lightning_modules
from beyondpixel.datamodules.fetching import fetch
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.merge import suggestion
from beyondpixel.experiments.yaml_files import read_yaml
from beyondpixel.lightning_modules import SegmentationModule

ENTRIES = Path(__file__).parent
# environment variable with the location of release files: a folder, or a URL that begins with http:// or https://
RELEASES_VARIABLE = "BEYONDPIXEL_RELEASES"


def load_released(name: str | Path, *, source: str | Path | None = None) -> SegmentationModule:
    """Load a released network, in evaluation mode, on the CPU; its `data_description` describes the input.

    The file is kept in the user's cache and checked against its SHA-256.

    Args:
        name: of the network; or its entry's file, which `beyondpixel release` writes.
        source: folder or URL of the release file; the environment variable BEYONDPIXEL_RELEASES if None.

    Raises:
        UserError: if no network of this name is released, or the location of the files is not given.
        DownloadError: if the file does not exist, or has other content.
    """
    entry = read_entry(name)
    location = str(source or os.environ.get(RELEASES_VARIABLE, ""))
    if not location:
        raise UserError(
            f"{entry['file']} is a release file and not part of the package: give its folder or URL as source=..., "
            f"or set {RELEASES_VARIABLE}"
        )
    address = location if "://" in location else Path(location).absolute().as_uri()
    archive = Path(pooch.os_cache("beyondpixel")) / entry["file"]
    fetch([f"{address.rstrip('/')}/{entry['file']}"], archive, checksum=f"sha256:{entry['sha256']}", progress=False)
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        module: SegmentationModule = getattr(lightning_modules, entry["class"]).from_pretrained(folder)
    return module


def read_entry(name: str | Path) -> dict[str, Any]:
    """Read `file`, `sha256`, `class`, `data`, `seed_everything` and `scores` of a released network.

    Raises:
        UserError: if no network of this name is released.
    """
    file = Path(name)
    if file.suffix != ".yaml":
        file = ENTRIES / f"{name}.yaml"
    if not file.is_file():
        released = [entry.stem for entry in sorted(ENTRIES.glob("*.yaml"))]
        raise UserError(f"no released network {name}; {suggestion(name, released)}")
    return read_yaml(file)


def score(module: SegmentationModule, entry: Mapping[str, Any]) -> dict[str, float]:
    """Test a module on the data of an entry, on the CPU; a test split of generated scenes needs no files."""
    from pytorch_lightning import Trainer

    from beyondpixel.experiments.build import build_data
    from beyondpixel.experiments.lightning_cli import quiet_lightning

    quiet_lightning()
    data = build_data(entry)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (scores,) = trainer.test(module, data, verbose=False)
    return dict(scores)
