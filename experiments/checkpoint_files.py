"""Atomic checkpoint files and their checksums."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from beyondpixel.experiments.run.folder import RunFolder, replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is whole and on the disk.

    Lightning's own writes to the system's temporary folder first; where that is another file system, moving is
    copying, and a process that is killed meanwhile leaves half a checkpoint in the place of the last whole one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save to a local path; `storage_options` are those of remote ones and play no part."""
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)


def keep_weights(path: Path) -> None:
    """Take everything out of a checkpoint that only a resumed training needs, such as the optimizer's state."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("optimizer_states", "lr_schedulers", "callbacks", "loops"):
        content.pop(key, None)
    AtomicCheckpointIO().save_checkpoint(content, path)


def trained_checksum(run: RunFolder) -> str | None:
    """The checksum of a run's last checkpoint as its training left it, also where it has been thinned out since."""
    return run.record.get("checkpoint") or checksum(run.last_checkpoint)


def checksum(path: str | Path) -> str | None:
    """A short text that tells a checkpoint's content; None if there is no checkpoint that is whole.

    It is made of the checksums (CRC-32) that the archive's directory has of each tensor, so that hundreds of megabytes
    need not be read, and says nothing of where the file lies or when it was written.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "last.ckpt"
        >>> checksum(file)
        >>> torch.save({"weight": torch.ones(2)}, file)
        >>> before = checksum(file)
        >>> torch.save({"weight": torch.zeros(2)}, file)
        >>> checksum(file) == before
        False
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # the first folder of a name is the file's own
            parts = [f"{part.filename.partition('/')[2]} {part.file_size} {part.CRC}" for part in archive.infolist()]
    except (OSError, zipfile.BadZipFile):
        return None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
