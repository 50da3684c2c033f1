"""Predictions of a trained model for images, without targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from beyondpixel.datamodules import SegmentationDataModule
from beyondpixel.datamodules.datasets.base import Pixels, Sample, SegmentationDataset
from beyondpixel.datamodules.datasets.errors import BadFileError, DataError
from beyondpixel.datamodules.datasets.files import FileDataset, Pair
from beyondpixel.datamodules.datasets.images import images_among
from beyondpixel.datamodules.datasets.labels import LabelTable
from beyondpixel.datamodules.loading import default_workers
from beyondpixel.datamodules.transforms import resize
from beyondpixel.experiments.errors import UserError, as_user_error
from beyondpixel.experiments.inference.outputs import PredictionFolder, shortened
from beyondpixel.experiments.inference.probabilities import to_probs
from beyondpixel.lightning_modules import SegmentationModule


def find_dataset(
    data: SegmentationDataModule, images: Sequence[Path] | None, output: Path, names_file: Path | None
) -> SegmentationDataset:
    """Find the images to predict: a user's own files, else the data's `predict_path` or its test images.

    Raises:
        UserError: as for `find_images`, for names without images, or if the data is missing.
    """
    locations = [Path(data.predict_path)] if images is None and data.predict_path else images
    with as_user_error(DataError):
        if locations is not None:
            pairs = find_images(locations, output=output, names_file=names_file)
            return FileDataset(pairs, LabelTable({}), name="--images", remedy="add some", convert_images=True)
        if names_file is not None:
            raise UserError("--names selects among --images: add --images, or omit --names")
        return data.stored(data.test_split)


def find_images(locations: Sequence[Path], *, output: Path, names_file: Path | None = None) -> list[Pair]:
    """Find all images among files and folders, folders searched recursively, in the order of their names.

    The name of an image is its path below the folder that was given, without suffix.
    Hidden files are skipped, and so are files in the output folder if it is inside a searched folder.

    Args:
        locations: images, or folders of them.
        output: the folder for predictions.
        names_file: a text file with one name per line, with or without suffix (such as VOC's
            ImageSets/Segmentation/test.txt); only these images are taken, in this order.

    Raises:
        UserError: if a location does not exist, holds no image or is the output folder, or a listed image is missing.
    """
    images: list[Pair] = []
    for location in locations:
        if not location.exists():
            raise UserError(f"--images: no file or folder {location}")
        images += _in_folder(location, output) if location.is_dir() else [Pair(location.stem, location, None)]
    images = list({pair.image.resolve(): pair for pair in images}.values())
    return images if names_file is None else _listed(images, names_file)


def _in_folder(folder: Path, output: Path) -> list[Pair]:
    searched, own = folder.resolve(), output.resolve()
    if own == searched:
        raise UserError(
            f"--output: {output} is the folder of the images, in which predictions would overwrite images, or be taken "
            "for images the next time: choose another folder"
        )
    skipped = own.is_relative_to(searched)
    files = [
        file
        for file in images_among(folder.rglob("*"))
        if file.is_file() and not (skipped and file.resolve().is_relative_to(own))
    ]
    if not files:
        raise UserError(f"--images: the folder {folder} holds no images")
    return [Pair(file.relative_to(folder).with_suffix("").as_posix(), file, None) for file in files]


def _listed(images: Sequence[Pair], names_file: Path) -> list[Pair]:
    try:
        lines = names_file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--names: {names_file} cannot be read ({error}); expected a text file with one image name per line"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    by_name = {key: pair for pair in images for key in (pair.id, f"{pair.id}{pair.image.suffix}")}
    missing = [name for name in names if name not in by_name]
    if missing or not names:
        raise UserError(f"--names: {names_file} names {shortened(missing) or 'nothing'}, not found among the images")
    return list(dict.fromkeys(by_name[name] for name in names))


def predict_dataset(
    dataset: SegmentationDataset,
    module: SegmentationModule,
    data: SegmentationDataModule,
    predictions: PredictionFolder,
    *,
    overwrite: bool = False,
) -> None:
    """Predict the images of a data set into a prepared folder; existing predictions are kept without `overwrite`.

    Raises:
        UserError: after all others are done, if images are unreadable or too large for the memory.
    """
    waiting = [index for index, name in enumerate(dataset.ids) if overwrite or not predictions.is_done(name)]
    if len(waiting) < len(dataset):
        print(f"{len(dataset) - len(waiting)} of {len(dataset)} images are predicted already and kept")
    # without batches, because padding would change what a network with global pooling sees; and with `tuple` in place
    # of PyTorch's collation, which would convert arrays to tensors
    workers = min(default_workers(), len(waiting))
    loader: DataLoader[Item] = DataLoader(
        _Images(dataset), batch_size=None, sampler=waiting, num_workers=workers, collate_fn=tuple
    )
    items = track(loader, "Predicting", total=len(waiting))
    failures = list(filter(None, (_predict_one(item, module, data, predictions) for item in items)))
    print(f"{len(waiting) - len(failures)} predictions written to {predictions.path}")
    if failures:
        raise UserError(
            f"{len(failures)} of {len(dataset)} images could not be predicted; the others are done:\n"
            + "\n".join(f"  {failure}" for failure in failures)
        )


# a name, and an image uint8 (H, W, 3) or the text of the error of its file
Item = tuple[str, Pixels | str]


@dataclass
class _Images(Dataset[Item]):
    """Images with their names, at their own sizes."""

    dataset: SegmentationDataset

    def __getitem__(self, index: int) -> Item:
        try:
            return self.dataset.ids[index], self.dataset.read(index).image
        except (BadFileError, DataError) as error:
            return self.dataset.ids[index], str(error)


@torch.inference_mode()
def _predict_one(
    item: Item, module: SegmentationModule, data: SegmentationDataModule, predictions: PredictionFolder
) -> str | None:
    """Predict and write an image; return an error that concerns this image alone."""
    name, image = item
    if isinstance(image, str):
        return image
    height, width = image.shape[:2]
    resized = image
    if data.image_size is not None:
        resized = resize(Sample(image, None, name), data.image_size, data.resampling).image
    colors = torch.tensor(resized).permute(2, 0, 1)[None].to(module.device)
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
