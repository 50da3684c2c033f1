"""Predictions of a trained model for images, without targets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from beyondpixel.datamodules import SegmentationDataModule
from beyondpixel.datamodules.datasets.base import Pixels, Sample, SegmentationDataset
from beyondpixel.datamodules.datasets.errors import BadFileError, DataError
from beyondpixel.datamodules.datasets.reading import read_image
from beyondpixel.datamodules.loading import default_workers
from beyondpixel.datamodules.transforms import Resize
from beyondpixel.experiments.checkpoint_files import checksum
from beyondpixel.experiments.errors import UserError, as_user_error
from beyondpixel.experiments.inference.checkpoints import load_trained
from beyondpixel.experiments.inference.images import Named, find_images
from beyondpixel.experiments.inference.inferers import InfererOptions, parse_inferer
from beyondpixel.experiments.inference.outputs import PredictionFolder
from beyondpixel.experiments.inference.probabilities import to_probs
from beyondpixel.experiments.inference.submission import check_submission, pack_voc
from beyondpixel.lightning_modules import SegmentationModule


def predict_images(
    checkpoint: Path,
    config: Mapping[str, Any],
    images: Sequence[Path] | None,
    predictions: PredictionFolder,
    *,
    names_file: Path | None = None,
    inferer: str | None = None,
    submission: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> None:
    """Predict images into a folder; see `beyondpixel.experiments.inference.command.predict`."""
    options = InfererOptions() if inferer is None else parse_inferer(inferer)
    module, data = load_trained(checkpoint, config)
    locations = [Path(data.predict_path)] if images is None and data.predict_path else images
    files = None if locations is None else find_images(locations, output=predictions.path, names_file=names_file)
    if files is None and names_file is not None:
        raise UserError("--names selects among --images: add --images, or omit --names")
    with as_user_error(DataError):
        dataset = _Images(data.stored(data.test_split) if files is None else files)
    if submission is not None:
        check_submission(submission, num_classes=module.num_classes, colors=predictions.colors)
    with as_user_error(RuntimeError, TypeError):  # torch's message names the device, or the dtype that it lacks
        module.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    module.inferer = options.build(data)
    preprocessing = {name: getattr(data, name) for name in ("image_size", "resampling", "mean", "std")}
    settings = {"checkpoint": checksum(checkpoint), **options.axes, **json.loads(json.dumps(preprocessing))}
    predictions.prepare(files or [], settings, overwrite=overwrite)
    waiting = [index for index, name in enumerate(dataset.names) if overwrite or not predictions.is_done(name)]
    if len(waiting) < len(dataset.names):
        print(f"{len(dataset.names) - len(waiting)} of {len(dataset.names)} images are predicted already and kept")
    failures = []
    # without batches, because padding would change what a network with global pooling sees
    workers = min(default_workers(), len(waiting))
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=None, sampler=waiting, num_workers=workers, collate_fn=_unchanged
    )
    for name, image, unreadable in track(loader, "Predicting", total=len(waiting)):
        failure = unreadable or _predict_one(name, image, module, data, predictions)
        if failure:
            failures.append(failure)
    print(f"{len(waiting) - len(failures)} predictions written to {predictions.path}")
    if failures:
        raise UserError(
            f"{len(failures)} of {len(dataset.names)} images could not be predicted; the others are done:\n"
            + "\n".join(f"  {failure}" for failure in failures)
        )
    if submission is not None:
        print(f"Archive for the test server: {pack_voc(dataset.names, predictions, submission)}")


# a name, uint8 (H, W, 3) or None, and what is wrong with the file
Item = tuple[str, Pixels | None, str | None]


def _unchanged(item: Any) -> Any:
    """Replacement of PyTorch's collation, which converts arrays to tensors."""
    return item


class _Images(Dataset[Item]):
    """Images by name, at their own sizes: a user's own files, or a data module's test images."""

    def __init__(self, images: Sequence[Named] | SegmentationDataset) -> None:
        self.images = images
        self.names = images.ids if isinstance(images, SegmentationDataset) else [name for name, _ in images]

    def __getitem__(self, index: int) -> Item:
        try:
            if isinstance(self.images, SegmentationDataset):
                return self.names[index], self.images[index].image, None
            return self.names[index], read_image(self.images[index][1], convert=True), None
        except (BadFileError, DataError) as error:
            return self.names[index], None, str(error)


@torch.inference_mode()
def _predict_one(
    name: str, image: Pixels, module: SegmentationModule, data: SegmentationDataModule, predictions: PredictionFolder
) -> str | None:
    """Predict and write an image; return an error that concerns this image alone."""
    height, width = image.shape[:2]
    resized = image
    if data.image_size is not None:
        resized = Resize(data.image_size, data.resampling)(Sample(image, None, name)).image
    colors = torch.from_numpy(resized).permute(2, 0, 1)[None].to(module.device)
    try:
        probs = to_probs(module.infer(data.normalize({"image": colors})["image"]))
    except RuntimeError as error:  # torch.OutOfMemoryError on a GPU, the allocator's on a CPU
        if "memory" not in str(error):
            raise
        return f"{name} ({width}x{height}) does not fit the memory: predict crops with --inferer window:513"
    if probs.shape[2:] != (height, width):
        probs = F.interpolate(probs, size=(height, width), mode="bilinear", align_corners=False)
    array: NDArray[np.float32] = probs[0].cpu().numpy()
    predictions.write(name, image, array, data.palette)
    return None
