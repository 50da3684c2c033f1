"""A released network from its file, wherever that lies, and its score.

What is released has an entry here, NAME.yaml: the file's name and SHA-256, the module's class, the data that it was
scored on, and the scores. The file itself, a zip archive of what `save_pretrained` writes, is not part of this package.
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
# where release files lie: a folder, or an address that begins with http:// or https://
ADDRESS = "BEYONDPIXEL_RELEASES"


def load_released(name: str | Path, *, source: str | Path | None = None) -> SegmentationModule:
    """Load a released network, in evaluation mode, on the CPU; its `data_description` says what it takes.

    The file is kept in the user's cache and checked against its SHA-256.

    Args:
        name: of the network; or its entry's file, which `beyondpixel release` writes.
        source: the folder or address that the release file lies in; the environment's BEYONDPIXEL_RELEASES if None.

    Raises:
        UserError: if nothing of this name is released, or nobody says where the files lie.
        DownloadError: if the file is not there, or has other content.
    """
    entry = read_entry(name)
    place = str(source or os.environ.get(ADDRESS, ""))
    if not place:
        raise UserError(
            f"{entry['file']} is a release file and not part of the package: give the folder or address that it lies "
            f"in as source=..., or set {ADDRESS}"
        )
    address = place if "://" in place else Path(place).absolute().as_uri()
    archive = Path(pooch.os_cache("beyondpixel")) / entry["file"]
    fetch([f"{address.rstrip('/')}/{entry['file']}"], archive, checksum=f"sha256:{entry['sha256']}", progress=False)
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        module: SegmentationModule = getattr(lightning_modules, entry["class"]).from_pretrained(folder)
    return module


def read_entry(name: str | Path) -> dict[str, Any]:
    """`file`, `sha256`, `class`, `data`, `seed_everything` and `scores` of a released network.

    Raises:
        UserError: if there is none.
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
