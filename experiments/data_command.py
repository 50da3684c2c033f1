"""`beyondpixel data get` and `data check`: download a data set, read and verify it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rich.markup import escape
from rich.table import Table

from beyondpixel import datamodules
from beyondpixel.datamodules import download
from beyondpixel.datamodules.datasets.errors import BadFileError, DataError
from beyondpixel.datamodules.fetching import DownloadError
from beyondpixel.datamodules.unpacking import ArchiveError
from beyondpixel.experiments.console import make_console
from beyondpixel.experiments.errors import UserError, as_user_error
from beyondpixel.experiments.image_files import check_extension

if TYPE_CHECKING:
    from beyondpixel.datamodules import SegmentationDataModule
    from beyondpixel.datamodules.checks import SplitReport
    from beyondpixel.datamodules.datasets.base import Sample, SegmentationDataset

SIZES_SHOWN = 5


def get_data(name: Literal["camvid", "voc", "sbd"], *, root: Path, mirrors: Sequence[str] = ()) -> None:
    """Download a data set. A complete data set is left alone, and an interrupted download is resumed.

    Args:
        name: the data set; `sbd` adds the trainaug split to VOC at the same root.
        root: the folder to download to.
        mirrors: addresses or folders to try first: of the archive, or of the folder that holds it.
    """
    with as_user_error(DataError, DownloadError, ArchiveError):
        done = download.get(name, root, mirrors=mirrors)
    print(f"{name} is in {root}" if done else f"{name} is complete in {root}; nothing was downloaded")
    if name == "voc":
        print(f"Add its training split trainaug with: beyondpixel data get sbd --root {root}")
    else:
        checked = "voc" if name == "sbd" else name
        print(f"Look at it with: beyondpixel data check {checked} --root {root} --grid {checked}.png")


def check_data(
    name: Literal["camvid", "folder", "shapes", "voc"],
    *,
    root: Path | None = None,
    grid: Path | None = None,
    samples: int = 4,
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Read every file of a data set, print what is in it, and draw some samples.

    Takes the data module's own options as well, such as --data.mask_suffix _mask; with --data.on_error skip, bad files
    of the training split are listed but accepted.

    Args:
        name: the data set.
        root: its folder; `shapes` needs none.
        grid: a PNG, PDF or SVG file to write samples with their masks to.
        samples: how many samples of each split to draw.
        overrides: options of the data module, as `{"data.mask_suffix": "_mask"}`.

    Raises:
        UserError: for options that the data module does not have; after everything has been printed, if the data set
            cannot be used as it is.
    """
    if samples < 1:
        raise UserError(f"--samples must be at least 1, got {samples}")
    check_extension("--grid", grid)
    from beyondpixel.datamodules.checks import check

    data = _build(name, root, overrides or {})
    reports = check(data)
    console = make_console()
    for split in reports:
        console.print(_summary(data.dataset_name, split), soft_wrap=True)  # paths can be copied in one piece
        if split.classes:
            console.print(_class_table(split))
    if grid is not None:
        _draw(data, [split.split for split in reports if split.images], samples, grid)
    left_out = _check_usable(data, reports)
    skipping = f", except {left_out} training samples that on_error skip leaves out" if left_out else ""
    print(f"{data.dataset_name}: no fault found{skipping}")


def _check_usable(data: SegmentationDataModule, reports: Sequence[SplitReport]) -> int:
    """Raise an error if a split cannot be used, and return how many training samples are left out."""
    skipped = data.train_split if data.on_error == "skip" else None
    bad = [split.split for split in reports if not (split.ok or (split.split == skipped and split.images))]
    if bad:
        raise UserError(f"{data.dataset_name} cannot be used as it is: see {', '.join(bad)} above")
    return sum(len(split.faults) for split in reports)


def _build(name: str, root: Path | None, overrides: Mapping[str, Any]) -> SegmentationDataModule:
    from beyondpixel.experiments.build import build_data
    from beyondpixel.experiments.resolve import complete

    # by default CamVid trains on trainval, and its val split would not be read
    arguments: dict[str, Any] = {"train_split": "train"} if name == "camvid" else {}
    if root is not None:
        arguments["root"] = str(root)
    for key, value in overrides.items():
        if not key.startswith("data."):
            raise UserError(f"--{key}: unknown key; data check takes --data.KEY, the options of the data set")
        arguments[key.removeprefix("data.").removeprefix("init_args.")] = value
    if name != "shapes" and "root" not in arguments:
        raise UserError(f"data check {name} needs --root DIR, the folder of the data set")
    classes = {class_name.removesuffix("DataModule").lower(): class_name for class_name in datamodules.__all__}
    config, errors = complete({"data": {"class_path": classes[name], "init_args": arguments}})
    if errors:
        raise UserError("\n".join(f"--data.{'.'.join(keys[2:])}: {text}" for keys, text in errors))
    return cast("SegmentationDataModule", build_data(config))


def _summary(dataset: str, split: SplitReport) -> str:
    sizes = [f"{width}x{height} ({count})" for (height, width), count in split.sizes.items()]
    shown = ", ".join(sizes[:SIZES_SHOWN]) + (f" and {len(sizes) - SIZES_SHOWN} more" if sizes[SIZES_SHOWN:] else "")
    lines = [f"[bold]{dataset} {split.split}[/bold]: {split.images} images" + (f", {shown}" if shown else "")]
    if split.mean:
        # as lines of a class file
        for name, values in (("mean", split.mean), ("std", split.std)):
            lines.append(escape(f"{name}: [{', '.join(f'{value:.4f}' for value in values)}]"))
    lines += [f"[yellow]{escape(warning)}[/yellow]" for warning in split.warnings]
    if split.absent_classes:
        lines.append(f"[yellow]no pixel of: {', '.join(split.absent_classes)}[/yellow]")
    if split.error:
        lines.append(f"[red]{escape(split.error)}[/red]")
    if split.faults:
        lines.append(f"[red]samples that cannot be used: {len(split.faults)}[/red]")
        lines += [f"  {escape(fault)}" for fault in split.faults]
        lines.append(f"To fix it: {escape(split.remedy)}")
    return "\n".join(lines)


def _class_table(split: SplitReport) -> Table:
    table = Table("class", "pixels", "share", "images")
    for count in split.classes:
        table.add_row(count.name, f"{count.pixels:,}", f"{100 * count.share:.2f} %", str(count.images))
    return table


def _spread_samples(dataset: SegmentationDataset, count: int) -> list[Sample]:
    """Choose readable samples with a mask, spread over the split: neighbors are often frames of one video."""
    step = max(1, len(dataset) // count)
    chosen: list[Sample] = []
    for index in sorted(range(len(dataset)), key=lambda index: (index % step, index)):
        if len(chosen) == count:
            break
        with suppress(BadFileError):
            sample = dataset.read(index)
            chosen += [sample] if sample.mask is not None else []
    return chosen


def _draw(data: SegmentationDataModule, splits: Sequence[str], count: int, file: Path) -> None:
    """Draw some samples of each split that has any, with their masks."""
    from beyondpixel.lightning_modules.visualization import class_colors, colorize, image_grid, overlay

    drawn = {split: _spread_samples(data.load_split(split), count) for split in splits}
    samples = [sample for chosen in drawn.values() for sample in chosen]
    if not samples:
        return
    images = [sample.image for sample in samples]
    masks = [sample.mask for sample in samples if sample.mask is not None]
    pairs = zip(images, masks, strict=True)
    columns = {
        "image": images,
        "mask over it": [overlay(*pair, data.palette, ignore_index=data.ignore_index) for pair in pairs],
        "mask": [colorize(mask, data.palette, data.ignore_index) for mask in masks],
    }
    legend = class_colors(masks, data.palette, data.class_names, data.ignore_index)
    file.parent.mkdir(parents=True, exist_ok=True)
    heading = f"{data.dataset_name}: samples of " + ", ".join(
        f"{name} ({len(chosen)})" for name, chosen in drawn.items()
    )
    image_grid(columns, legends={"Classes": legend}, heading=heading, photos=("image", "mask over it")).savefig(file)
    print(f"Samples are written to {file}")
