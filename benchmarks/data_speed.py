"""Images per second of the VOC training pipeline on one core, against the straightforward Pillow pipeline.

    python benchmarks/data_speed.py    about a minute

Both read the same 500x375 JPEGs and palette masks and give 513x513 crops: scales 0.5 to 2.0 in steps of 0.25, padding,
random crop, flip, normalization. The Pillow pipeline is the one that the RMI authors describe: the whole image is
rescaled (bicubic), then padded, cropped, flipped and normalized in float. bicubic_antialias gives the same pixels up to
1/255. Times are processor times. All repetitions are in results/data_speed.json, the table in results/data_speed.md.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from measuring.markdown import table
from measuring.record import environment, race
from PIL import Image, ImageOps
from tables import make_parser, save
from torch import Tensor

from beyondpixel.datamodules import ShapesDataModule, VOCDataModule
from beyondpixel.datamodules.loading import Collate

PILLOW = "Pillow: rescale all (bicubic), pad, crop, flip, normalize in float"
CROP = 513
BATCH = 8


def write_voc(root: Path, images: int) -> None:
    """Write scenes with as much detail as photographs, in VOC's layout."""
    data = ShapesDataModule(num_train=images, image_size=(375, 500))
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for sample in data.dataset("train"):
        Image.fromarray(sample.image).save(root / "JPEGImages" / f"{sample.id}.jpg", quality=90)
        mask = Image.fromarray(sample.mask)
        mask.putpalette([channel for color in data.palette for channel in color])
        mask.save(root / "SegmentationClass" / f"{sample.id}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(data.dataset("train").ids))


def straightforward(data: VOCDataModule) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of the Pillow pipeline."""
    rng = np.random.default_rng(0)
    fill = tuple(round(255 * value) for value in data.mean)
    mean, std = (np.array(values, dtype=np.float32) for values in (data.mean, data.std))
    images, masks = [], []
    for pair in data.load_split("train").pairs:
        image, mask = Image.open(pair.image).convert("RGB"), Image.open(pair.mask)
        scale = 0.5 + 0.25 * rng.integers(7)
        size = round(image.width * scale), round(image.height * scale)
        image, mask = image.resize(size, Image.Resampling.BICUBIC), mask.resize(size, Image.Resampling.NEAREST)
        right, bottom = max(0, CROP - size[0]), max(0, CROP - size[1])
        if right or bottom:
            image = ImageOps.expand(image, (0, 0, right, bottom), fill=fill)
            mask = Image.fromarray(np.pad(np.asarray(mask), ((0, bottom), (0, right)), constant_values=255))
        left, top = (int(rng.integers(side - CROP + 1)) for side in image.size)
        box = (left, top, left + CROP, top + CROP)
        image, mask = image.crop(box), mask.crop(box)
        if rng.random() < 0.5:
            image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
        pixels = (np.asarray(image, dtype=np.float32) / 255 - mean) / std
        images.append(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
        masks.append(torch.from_numpy(np.asarray(mask, dtype=np.int64)))
        if len(images) == BATCH:
            yield torch.stack(images), torch.stack(masks)
            images, masks = [], []


def eight_bit(data: VOCDataModule) -> Iterator[Any]:
    """Iterate as a worker does inside a Trainer: batches stay in 8 bits, and the device normalizes them."""
    loader = data.train_dataloader()
    loader.collate_fn = Collate(loader.collate_fn.fill, None)
    return iter(loader)


def consume(batches: Callable[[], Iterator[Any]], images: int) -> Callable[[], None]:
    """Return a step that reads the whole data set once."""

    def step() -> None:
        if sum(1 for _ in batches()) != images // BATCH:
            raise RuntimeError("a pipeline lost images")

    return step


def main() -> None:
    parser = make_parser(__doc__, "data_speed")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    record = environment()
    with tempfile.TemporaryDirectory() as folder:
        write_voc(Path(folder), options.images)

        def voc(**arguments: Any) -> VOCDataModule:
            return VOCDataModule(folder, train_split="train", batch_size=BATCH, num_workers=0, **arguments)

        plain, cached, area = voc(), voc(cache="ram"), voc(resampling="area_cubic")
        pipelines: dict[str, Callable[[], Iterator[Any]]] = {
            PILLOW: lambda: straightforward(plain),
            "`bicubic_antialias`, normalize in float": lambda: iter(plain.train_dataloader()),
            "`bicubic_antialias`, 8 bits to the device, which normalizes": lambda: eight_bit(plain),
            '… and decoded images in memory (`cache="ram"`)': lambda: eight_bit(cached),
            "`area_cubic`, 8 bits to the device": lambda: eight_bit(area),
        }
        steps = {name: consume(batches, options.images) for name, batches in pipelines.items()}
        record["images"] = options.images
        record["times"] = race(steps, options.repeats, clock=time.process_time)
    save("data_speed", record, options.out)


def sections(record: dict[str, Any]) -> dict[str, str]:
    """Format the table of the record."""
    direct, rows = record["times"][PILLOW], []
    for name, times in record["times"].items():
        slow, median, fast = (1e3 * record["images"] / value for value in reversed(times["quartiles"]))
        ratio = direct["quartiles"][1] / times["quartiles"][1]
        rows.append((name, f"{median:.0f} ({slow:.0f} – {fast:.0f})", f"{ratio:.1f}×"))
    what = "500×375 JPEGs and palette masks to crops of 513×513, in processor time."
    return {"pipelines": f"{what}\n\n" + table(("pipeline", "images/s on one core: median (quartiles)", "ratio"), rows)}


if __name__ == "__main__":
    main()
