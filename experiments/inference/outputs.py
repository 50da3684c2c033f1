"""A folder of predictions: written file by file so that an interrupted prediction goes on where it stopped."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.starting import differences
from beyondpixel.lightning_modules.visualization import Color, indexed_image, overlay
from beyondpixel.lightning_modules.visualization import Image as Picture

Colors = Literal["palette", "rgb"]
SETTINGS = "predictions.json"


@dataclass(frozen=True)
class PredictionFolder:
    """Where predictions go: `NAME.png`, and if wanted `overlays/NAME.png` and `probabilities/NAME.npz`.

    Attributes:
        path: the folder.
        palette: RGB colour of each class.
        colors: "palette" writes class numbers with the colours as the PNG's palette, "rgb" the colours themselves.
        overlays: whether to lay each prediction over its image.
        probabilities: whether to write `probs`, float16 (C, H, W).
    """

    path: Path
    palette: list[Color]
    colors: Colors = "palette"
    overlays: bool = False
    probabilities: bool = False

    def prepare(self, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Make the folder, and note what its predictions are made with.

        Args:
            settings: checkpoint and protocol; predictions that are there already must have the same.
            overwrite: whether to predict again what is there.

        Raises:
            UserError: if the folder cannot be written to, or holds predictions made with other settings.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            reason = f"{error.strerror or error}"
            raise UserError(
                f"--output: {self.path} cannot be written to ({reason}): choose a folder of your own"
            ) from error
        file = self.path / SETTINGS
        changed = differences(json.loads(file.read_text()), settings) if file.exists() else []
        if changed and not overwrite:
            raise UserError(
                f"--output: {self.path} holds predictions made otherwise ({'; '.join(changed)}): choose another "
                "folder, or replace them with --overwrite"
            )
        text = json.dumps(dict(settings), indent=2) + "\n"
        self._write(file, lambda stream: stream.write(text.encode()))

    def mask_file(self, name: str) -> Path:
        """The prediction."""
        return self.path / f"{name}.png"

    def files(self, name: str) -> list[Path]:
        """Everything that is written for an image."""
        files = [self.mask_file(name)]
        if self.overlays:
            files.append(self.path / "overlays" / f"{name}.png")
        if self.probabilities:
            files.append(self.path / "probabilities" / f"{name}.npz")
        return files

    def is_done(self, name: str) -> bool:
        """Whether all files of an image are there."""
        return all(file.exists() for file in self.files(name))

    def write(self, name: str, image: Picture, probs: NDArray[np.floating[Any]]) -> None:
        """Write an image's files, each whole or not at all.

        Args:
            name: of the image.
            image: uint8 (H, W, 3).
            probs: (C, H, W).
        """
        preds = probs.argmax(axis=0)
        picture = indexed_image(preds, self.palette)
        picture = picture.convert("RGB") if self.colors == "rgb" else picture
        self._write(self.mask_file(name), lambda stream: picture.save(stream, "PNG"))
        if self.overlays:
            mixed = Image.fromarray(overlay(image, preds, self.palette, ignore_index=-1))
            self._write(self.path / "overlays" / f"{name}.png", lambda stream: mixed.save(stream, "PNG"))
        if self.probabilities:
            half = probs.astype(np.float16)
            file = self.path / "probabilities" / f"{name}.npz"
            self._write(file, lambda stream: np.savez_compressed(stream, probs=half))

    def _write(self, file: Path, save: Callable[[io.BufferedWriter], object]) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
            try:
                with os.fdopen(handle, "wb") as stream:
                    save(stream)
                Path(temporary).chmod(0o644)  # mkstemp makes files that only their owner can read
                Path(temporary).replace(file)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise UserError(
                f"--output: {file} cannot be written ({error.strerror or error}); what is done is kept: make room or "
                "change the permissions, and run the command again to go on"
            ) from error
