"""`beyondpixel data get`: download a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from beyondpixel.datamodules.datasets.errors import DataError
from beyondpixel.datamodules.download import get
from beyondpixel.datamodules.fetching import DownloadError
from beyondpixel.datamodules.unpacking import ArchiveError
from beyondpixel.experiments.errors import as_user_error


def get_data(name: Literal["camvid", "voc", "sbd"], *, root: Path, mirrors: Sequence[str] = ()) -> None:
    """Download a data set. A complete data set is left alone, and an interrupted download is resumed.

    Args:
        name: the data set; `sbd` adds the trainaug split to VOC at the same root.
        root: the folder to download to.
        mirrors: addresses or folders to try first: of the archive, or of the folder that holds it.
    """
    with as_user_error(DataError, DownloadError, ArchiveError):
        done = get(name, root, mirrors=mirrors)
    print(f"{name} is in {root}" if done else f"{name} is complete in {root}; nothing was downloaded")
    if name == "voc":
        print(f"Add its training split trainaug with: beyondpixel data get sbd --root {root}")
    else:
        checked = "voc" if name == "sbd" else name
        print(f"Look at it with: beyondpixel data check {checked} --root {root} --grid {checked}.png")
