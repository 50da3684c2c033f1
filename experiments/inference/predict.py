"""Predictions of a trained model for a user's own images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional as F

from beyondpixel.datamodules import SegmentationDataModule
from beyondpixel.datamodules.datasets.base import Sample
from beyondpixel.datamodules.datasets.errors import BadFileError
from beyondpixel.datamodules.datasets.reading import read_image
from beyondpixel.datamodules.transforms import Resize
from beyondpixel.experiments.errors import UserError, as_user_error
from beyondpixel.experiments.inference.checkpoints import config_beside, load_module
from beyondpixel.experiments.inference.inputs import Input, find_inputs
from beyondpixel.experiments.inference.outputs import Colors, PredictionFolder
from beyondpixel.experiments.inference.pool import Refined, RefinementPool, started_ahead
from beyondpixel.experiments.inference.protocol import Protocol
from beyondpixel.experiments.inference.submission import check_submission, pack_voc
from beyondpixel.experiments.rebuilding import build_data
from beyondpixel.lightning_modules import SegmentationModule

READ_AHEAD = 8


class _Image(NamedTuple):
    name: str
    picture: NDArray[np.uint8]  # (H, W, 3) as it was read
    seen: NDArray[np.uint8]  # (h, w, 3) at the size that the model works at


def predict(
    checkpoint: Path,
    images: Sequence[Path],
    output: Path,
    *,
    protocol: Protocol | None = None,
    config_file: Path | None = None,
    names_file: Path | None = None,
    batch_size: int = 1,
    colors: Colors = "palette",
    overlays: bool = False,
    probabilities: bool = False,
    submission: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> None:
    """Predict images and folders of images into a folder; images that are predicted already are skipped.

    Classes, colours, normalisation and `image_size` are those of the data module in the run's config. Predictions have
    the images' own sizes. Grey, 16-bit and transparent images become RGB, and photographs are turned upright.

    Args:
        checkpoint: of the run.
        images: files and folders.
        output: the folder for predictions; see :class:`PredictionFolder`.
        protocol: how to look at each image; once, whole, if None.
        config_file: the run's config; the one beside the checkpoint's folder if None.
        names_file: a list of names to which the images are limited.
        batch_size: up to how many images of one size go through the network together; none is ever padded.
        colors, overlays, probabilities: see :class:`PredictionFolder`.
        submission: "voc" (competition 6), "voc:comp5" or "voc:comp6" packs an archive for the server.
        device: such as "cuda:1"; a GPU where there is one if None.
        overwrite: predict again what is there.

    Raises:
        UserError: for whatever a user can mend; for images that cannot be read, after all others are done.
    """
    protocol = protocol or Protocol()
    if batch_size < 1:
        raise UserError(f"--batch_size must be 1 or more, got {batch_size}")
    config = config_beside(checkpoint, config_file)
    inputs = find_inputs(images, names_file)
    with as_user_error(ValueError, OSError):
        data = build_data(config)
    module = load_module(checkpoint, config)
    if module.num_classes != data.num_classes:
        raise UserError(
            f"{checkpoint} has {module.num_classes} classes, but {config['data']['class_path']} in its config has "
            f"{data.num_classes}: give the config of its own run with --config FILE"
        )
    if submission is not None:
        check_submission(submission, num_classes=module.num_classes, colors=colors)
    predictions = PredictionFolder(output, data.palette, colors, overlays, probabilities)
    settings = {"checkpoint": str(checkpoint.resolve()), "written": checkpoint.stat().st_mtime_ns, "colors": colors}
    predictions.prepare({**settings, **protocol.words}, overwrite=overwrite)
    waiting = [one for one in inputs if overwrite or not predictions.is_done(one.name)]
    if len(waiting) < len(inputs):
        print(f"{len(inputs) - len(waiting)} of {len(inputs)} images are predicted already and kept")
    module.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    unreadable = _predict_all(waiting, module, data, predictions, protocol, batch_size=batch_size)
    print(f"{len(waiting) - len(unreadable)} predictions written to {output}")
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(inputs)} images could not be read; the others are done:\n"
            + "\n".join(f"  {fault}" for fault in unreadable)
        )
    if submission is not None:
        print(f"Archive for the test server: {pack_voc(inputs, predictions, submission)}")


def _predict_all(
    inputs: Sequence[Input],
    module: SegmentationModule,
    data: SegmentationDataModule,
    predictions: PredictionFolder,
    protocol: Protocol,
    *,
    batch_size: int,
) -> list[str]:
    """Predict and write; what is wrong with images that cannot be read, a line each."""
    unreadable: list[str] = []
    columns = (TextColumn("Predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(*columns))
        readers = stack.enter_context(ThreadPoolExecutor(max_workers=2))
        pool = stack.enter_context(RefinementPool(protocol.crf)) if protocol.crf else None
        task = progress.add_task("", total=len(inputs))

        def readable() -> Iterator[_Image]:
            reading = started_ahead(inputs, lambda one: readers.submit(_read, one, data), ahead=READ_AHEAD)
            for future in reading:
                try:
                    yield future.result()
                except BadFileError as error:
                    unreadable.append(str(error))
                    progress.advance(task)

        def start(batch: list[_Image]) -> list[tuple[_Image, NDArray[Any] | Future[Refined]]]:
            probs = _network_probs(batch, module, data, protocol)
            if pool is None:
                return list(zip(batch, probs, strict=True))
            return [(one, pool.submit(one.seen, own)) for one, own in zip(batch, probs, strict=True)]

        ahead = 0 if pool is None else 2 * pool.workers
        for batch in started_ahead(_batches(readable(), batch_size), start, ahead=ahead):
            for one, result in batch:
                probs = result.result().probs if isinstance(result, Future) else result
                predictions.write(one.name, one.picture, _at_size(probs, one.picture.shape[:2]))
                progress.advance(task)
    return unreadable


def _read(one: Input, data: SegmentationDataModule) -> _Image:
    picture = read_image(one.path, convert=True)
    seen = (
        picture
        if data.image_size is None
        else Resize(data.image_size, data.resampling)(Sample(picture, None, one.name)).image
    )
    return _Image(one.name, picture, seen)


def _batches(images: Iterable[_Image], batch_size: int) -> Iterator[list[_Image]]:
    """Neighbours of one size together: padding would change what a network with global pooling sees."""
    for _, same_size in groupby(images, key=lambda image: image.seen.shape):
        batch: list[_Image] = []
        for image in same_size:
            batch.append(image)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def _network_probs(
    batch: Sequence[_Image], module: SegmentationModule, data: SegmentationDataModule, protocol: Protocol
) -> NDArray[np.float32]:
    pictures = torch.from_numpy(np.stack([image.seen for image in batch])).permute(0, 3, 1, 2)
    images = data.normalize({"image": pictures.to(module.device)})["image"]
    try:
        probs: NDArray[np.float32] = protocol.network_probs(module, images).cpu().numpy()
    except torch.OutOfMemoryError as error:
        height, width = batch[0].seen.shape[:2]
        raise UserError(
            f"{batch[0].name} ({width}x{height}) does not fit the GPU's memory in a batch of {len(batch)}: lower "
            "--batch_size, look through sliding windows with --window 513, or use --device cpu"
        ) from error
    return probs


def _at_size(probs: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    if probs.shape[1:] == size:
        return probs
    resized = F.interpolate(torch.from_numpy(probs)[None], size=size, mode="bilinear", align_corners=False)
    return resized[0].numpy()
