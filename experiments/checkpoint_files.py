"""Writing of checkpoint files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from beyondpixel.experiments.run.folder import replacing


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
