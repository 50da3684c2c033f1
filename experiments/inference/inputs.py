"""A user's own images for prediction: which files, and under which names their predictions go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from beyondpixel.experiments.errors import UserError

SHOWN = 10


@dataclass(frozen=True)
class Input:
    """One image to predict.

    Attributes:
        name: its path below the folder that was given, without its ending; the predictions' name.
        path: where it lies.
    """

    name: str
    path: Path


def find_inputs(places: Sequence[Path], names_file: Path | None = None) -> list[Input]:
    """All images among files and folders, folders searched to any depth, in order of their names.

    Args:
        places: images, or folders of them.
        names_file: a text file with one name a line, with or without ending (such as VOC's
            ImageSets/Segmentation/test.txt); only these images are taken, in this order.

    Raises:
        UserError: if a place does not exist or holds no image, two images have one name, or a listed one is missing.
    """
    known = Image.registered_extensions()
    inputs: list[Input] = []
    for place in places:
        if not place.exists():
            raise UserError(f"--images: there is no file or folder {place}")
        if place.is_dir():
            files = sorted(file for file in place.rglob("*") if file.suffix.lower() in known and file.is_file())
            if not files:
                raise UserError(f"--images: the folder {place} holds no images")
            inputs += [Input(file.relative_to(place).with_suffix("").as_posix(), file) for file in files]
        else:
            inputs.append(Input(place.stem, place))
    inputs = list({one.path.resolve(): one for one in inputs}.values())
    if names_file is not None:
        inputs = _listed(inputs, names_file)
    by_name: dict[str, list[str]] = {}
    for one in inputs:
        by_name.setdefault(one.name, []).append(str(one.path))
    shared = [" and ".join(paths) for paths in by_name.values() if len(paths) > 1]
    if shared:
        raise UserError(
            f"--images: predictions of {_some(shared, 3)} would overwrite each other, because they are named after the "
            "images without their endings: rename the images, or predict them into different folders"
        )
    return inputs


def _listed(inputs: Sequence[Input], names_file: Path) -> list[Input]:
    if not names_file.is_file():
        raise UserError(f"--names: there is no file {names_file}; expected one image name a line")
    names = [line.split()[0] for line in names_file.read_text().splitlines() if line.strip()]
    by_name = {key: one for one in inputs for key in (one.name, f"{one.name}{one.path.suffix}")}
    missing = [name for name in names if name not in by_name]
    if missing or not names:
        raise UserError(f"--names: {names_file} names {_some(missing) or 'nothing'}, not found among --images")
    return list(dict.fromkeys(by_name[name] for name in names))


def _some(names: Sequence[str], shown: int = SHOWN) -> str:
    return ", ".join(names[:shown]) + (f" ({len(names) - shown} more)" if len(names) > shown else "")
