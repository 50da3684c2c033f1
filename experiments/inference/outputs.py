"""A folder of predictions, written file by file to continue an interrupted prediction, and its archive for a server."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beyondpixel.datamodules.datasets.files import Pair
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.resume import differences
from beyondpixel.experiments.run.folder import write_atomically
from beyondpixel.lightning_modules.visualization import Color, indexed_image, overlay

SETTINGS = "predictions.json"
# VOC 2012 development kit, section 5.3: competition 5 is for models trained on VOC's own train and val images alone,
# competition 6 for all others, such as those trained on SBD's masks (trainaug)
VOC_COMPETITIONS = {"voc": "comp6", "voc:comp5": "comp5", "voc:comp6": "comp6"}
VOC_CLASSES = 21


@dataclass(frozen=True)
class PredictionFolder:
    """`NAME.png` for each image, and optionally `overlays/NAME.png` and `probabilities/NAME.npz`.

    Attributes:
        path: the folder.
        colors: "palette" writes class numbers with the colors as the PNG's palette, "rgb" the colors themselves.
        overlays: whether to write an overlay of each prediction on its image.
        probabilities: whether to write `probs`, float16 (C, H, W).
    """

    path: Path
    colors: Literal["palette", "rgb"] = "palette"
    overlays: bool = False
    probabilities: bool = False

    def prepare(self, images: Sequence[Pair], settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """Create the folder, and record the settings of its predictions.

        Args:
            images: the image files to predict.
            settings: checkpoint and inferer; existing predictions must have the same.
            overwrite: whether to replace existing predictions.

        Raises:
            UserError: if predictions would overwrite each other or an image, or the folder cannot be written to or
                holds predictions that were made with other settings.
        """
        self._refuse_collisions(images)
        file = self.path / SETTINGS
        settings = {**settings, "colors": self.colors}
        changed = differences(self._settings(file), settings) if file.exists() and not overwrite else []
        if changed:
            raise UserError(
                f"--output: {self.path} holds predictions with other settings ({'; '.join(changed)}): choose another "
                "folder, or replace them with --overwrite"
            )
        if not file.exists() or differences(self._settings(file), settings):
            self._write(file, (json.dumps(settings, indent=2) + "\n").encode())

    def files(self, name: str) -> dict[str, Path]:
        """All files that are written for an image: `mask`, `overlay`, `probabilities`."""
        files = {
            "mask": self.path / f"{name}.png",
            "overlay": self.path / "overlays" / f"{name}.png",
            "probabilities": self.path / "probabilities" / f"{name}.npz",
        }
        wanted = {"mask": True, "overlay": self.overlays, "probabilities": self.probabilities}
        return {kind: file for kind, file in files.items() if wanted[kind]}

    def is_done(self, name: str) -> bool:
        """Whether all files of an image exist, and were made with the recorded settings."""
        since = (self.path / SETTINGS).stat().st_mtime_ns
        return all(file.exists() and file.stat().st_mtime_ns >= since for file in self.files(name).values())

    def write(
        self, name: str, image: NDArray[np.uint8], probs: NDArray[np.floating[Any]], palette: Sequence[Color]
    ) -> None:
        """Write an image's files, each one atomically.

        Args:
            name: of the image.
            image: uint8 (H, W, 3).
            probs: (C, H, W).
            palette: RGB color of each class.
        """
        preds, files = probs.argmax(axis=0), self.files(name)
        if self.overlays:
            mixed = overlay(image, preds, palette, ignore_index=-1)
            self._write(files["overlay"], _png(Image.fromarray(mixed)))
        if self.probabilities:
            archive = io.BytesIO()
            np.savez_compressed(archive, probs=probs.astype(np.float16))
            self._write(files["probabilities"], archive.getvalue())
        mask = indexed_image(preds, palette)
        self._write(files["mask"], _png(mask.convert("RGB") if self.colors == "rgb" else mask))

    def _refuse_collisions(self, images: Sequence[Pair]) -> None:
        writers: dict[Path, list[str]] = {}
        for pair in images:
            for file in self.files(pair.id).values():
                writers.setdefault(file, []).append(str(pair.image))
        shared = [" and ".join(paths) for paths in writers.values() if len(paths) > 1]
        if shared:
            raise UserError(
                f"--images: predictions of {shortened(shared, 3)} would overwrite each other, because they are named "
                "after the images without their suffix: rename the images, or predict them into different folders"
            )
        targets = {file.resolve() for file in writers}
        lost = [str(pair.image) for pair in images if pair.image.resolve() in targets]
        if lost:
            raise UserError(
                f"--output: predictions would overwrite the images {shortened(lost, 3)}: choose another folder"
            )

    def _settings(self, file: Path) -> dict[str, Any]:
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:  # not written by this class
            settings = None
        return settings if isinstance(settings, dict) else {"settings": "unreadable"}

    def _write(self, file: Path, content: bytes) -> None:
        try:
            write_atomically(file, content)
        except OSError as error:
            raise UserError(
                f"--output: {file} cannot be written ({error.strerror or error}); what is done is kept: make room, "
                "change the permissions or choose a folder of your own, and run the command again to continue"
            ) from error


def check_submission(submission: str, *, num_classes: int, colors: str) -> None:
    """Check what a server would refuse, before anything is predicted.

    Raises:
        UserError: for a model or images that the server does not accept.
    """
    if num_classes != VOC_CLASSES:
        raise UserError(
            f"--submission {submission}: VOC has {VOC_CLASSES} classes with background, but the model has {num_classes}"
        )
    if colors != "palette":
        raise UserError(f"--submission {submission}: the server reads class numbers: leave out --colors {colors}")


def pack_voc(names: Sequence[str], predictions: PredictionFolder, submission: str) -> Path:
    """Pack predictions for VOC 2012's test server.

    Args:
        names: of every image of the test set.
        predictions: folder with the predictions of all of them.
        submission: a key of `VOC_COMPETITIONS`.

    Returns:
        The archive, `results.tgz` in the folder of predictions; it contains
        `results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png` and so on.
    """
    archive = predictions.path / "results.tgz"
    folder = f"results/VOC2012/Segmentation/{VOC_COMPETITIONS[submission]}_test_cls"
    with tarfile.open(archive, "w:gz") as file:
        for name in names:
            file.add(predictions.files(name)["mask"], f"{folder}/{Path(name).name}.png")
    return archive


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def shortened(names: Sequence[str], shown: int = 10) -> str:
    """Join the first names, and add the number of further ones."""
    return ", ".join(names[:shown]) + (f" ({len(names) - shown} more)" if len(names) > shown else "")
