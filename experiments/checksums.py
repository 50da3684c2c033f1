"""Checksums of checkpoints."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from beyondpixel.experiments.run.folder import RunFolder


def trained_checksum(run: RunFolder) -> str | None:
    """The checksum of a run's last checkpoint at the end of its training, even if it was pruned since."""
    return run.record.get("checkpoint") or checksum(run.last_checkpoint)


def checksum(path: str | Path) -> str | None:
    """Short checksum of a checkpoint's content; None if there is no complete checkpoint.

    It is computed from the CRC-32 of each tensor in the archive's directory, so that hundreds of megabytes need not be
    read, and does not depend on the file's location or time.

    Example:
        >>> import tempfile
        >>> import torch
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
