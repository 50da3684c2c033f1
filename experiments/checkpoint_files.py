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
    """Write a checkpoint to a temporary file in its folder and rename it once it is complete and on the disk.

    Lightning's own plugin writes to the system's temporary folder first; if that is another file system, moving is
    copying, and a process that is killed meanwhile leaves half a checkpoint instead of the last complete one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save to a local path; `storage_options` apply to remote paths and are ignored."""
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)


def keep_weights(path: Path) -> None:
    """Remove from a checkpoint everything that only a resumed training needs, such as the optimizer's state."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("optimizer_states", "lr_schedulers", "callbacks", "loops"):
        content.pop(key, None)
    AtomicCheckpointIO().save_checkpoint(content, path)


def trained_checksum(run: RunFolder) -> str | None:
    """The checksum of a run's last checkpoint at the end of its training, even if it was pruned since."""
    return run.record.get("checkpoint") or checksum(run.last_checkpoint)


def checksum(path: str | Path) -> str | None:
    """Short checksum of a checkpoint's content; None if there is no complete checkpoint.

    It is computed from the CRC-32 of each tensor in the archive's directory, so that hundreds of megabytes need not be
    read, and does not depend on the file's location or time.

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
            # the first folder of each name is the name of the file
            parts = [f"{part.filename.partition('/')[2]} {part.file_size} {part.CRC}" for part in archive.infolist()]
    except (OSError, zipfile.BadZipFile):
        return None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
