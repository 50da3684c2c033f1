"""Find a user's images to predict, and the names of their predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from beyondpixel.datamodules.datasets.files import Pair
from beyondpixel.datamodules.datasets.images import images_among
from beyondpixel.experiments.errors import UserError

SHOWN = 10


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
        UserError: if a location does not exist or holds no image, or a listed image is missing.
    """
    images: list[Pair] = []
    for location in locations:
        if not location.exists():
            raise UserError(f"--images: no file or folder {location}")
        images += _in_folder(location, output) if location.is_dir() else [Pair(location.stem, location, None)]
    images = list({pair.image.resolve(): pair for pair in images}.values())
    return images if names_file is None else _listed(images, names_file)


def _in_folder(folder: Path, output: Path) -> list[Pair]:
    own = set() if output.resolve() == folder.resolve() else {output.resolve()}
    files = [
        file for file in images_among(folder.rglob("*")) if file.is_file() and own.isdisjoint(file.resolve().parents)
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


def shortened(names: Sequence[str], shown: int = SHOWN) -> str:
    """Join the first names, and add the number of further ones."""
    return ", ".join(names[:shown]) + (f" ({len(names) - shown} more)" if len(names) > shown else "")
