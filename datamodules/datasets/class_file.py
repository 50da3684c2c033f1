"""The YAML file that defines the classes of a user's own data set."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from beyondpixel.datamodules.datasets.errors import DataError, data_error
from beyondpixel.datamodules.datasets.labels import IGNORE_INDEX, Color, LabelTable
from beyondpixel.datamodules.normalization import IMAGENET_MEAN, IMAGENET_STD, Triple

EXAMPLE = """\
masks: index            # or: color
classes:
  - {name: background, color: [0, 0, 0]}
  - {name: leaf, color: [0, 160, 0]}
void: [255]             # values (or colors) of pixels without a label
"""
_KEYS = ("classes", "masks", "void", "mean", "std")
_CLASS_KEYS = ("name", "color", "value")


@dataclass(frozen=True)
class ClassFile:
    """Content of `classes.yaml`.

    Attributes:
        class_names: In the order of the class indices.
        palette: One RGB color for each class.
        values: Mapping of the mask files' values to class indices.
        mean: RGB mean of the images scaled to 0..1; ImageNet's if the file has none.
        std: RGB standard deviation likewise.
    """

    class_names: list[str]
    palette: list[Color]
    values: LabelTable
    mean: Triple
    std: Triple


def read_class_file(path: Path) -> ClassFile:
    """Read a class file.

    Raises:
        DataError: The file is missing or invalid; the message shows an example.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _parse(content)
    except FileNotFoundError:
        raise _class_file_error(path, "is missing") from None
    # PyYAML raises ValueError for invalid dates, and RecursionError for deep nesting
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _class_file_error(path, str(error)) from error


def _class_file_error(path: Path, fault: str) -> DataError:
    example = "".join(f"\n    {line}" for line in EXAMPLE.splitlines())
    return data_error(
        f"The class file {path} cannot be used",
        [fault],
        expected="a list of classes, for example:" + example + "\n",
        remedy=f"write or correct {path}",
    )


def _parse(content: Any) -> ClassFile:
    if not isinstance(content, dict):
        raise ValueError("contains no mapping")
    _check_keys("key", content, _KEYS)
    kind = content.get("masks", "index")
    if kind not in ("index", "color"):
        raise ValueError(f"masks must be index or color, got {kind!r}")
    entries = content.get("classes")
    if not isinstance(entries, list) or not entries:
        raise ValueError("has no list of classes")
    classes = [_class(index, entry) for index, entry in enumerate(entries)]
    names, palette, values = map(list, zip(*classes, strict=True))
    for what, given in (("names", names), ("colors", palette), ("values", values)):
        if len(set(given)) < len(given):
            raise ValueError(f"two classes have the same {what[:-1]}: {given}")
    void = content.get("void", [255] if kind == "index" and 255 not in values else [])
    if not isinstance(void, list):
        raise ValueError(f"void must be a list, got {void!r}")
    return ClassFile(
        names,
        palette,
        _labels("values", values, map(_value, void))
        if kind == "index"
        else _labels("colors", palette, map(partial(_color, "void"), void)),
        _triple("mean", content.get("mean", IMAGENET_MEAN)),
        _triple("std", content.get("std", IMAGENET_STD)),
    )


def _class(index: int, entry: Any) -> tuple[str, Color, int]:
    """Name, color and value in the masks of one class."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError(f"class {index} has no name: {entry!r}")
    _check_keys(f"key in class {entry['name']}", entry, _CLASS_KEYS)
    return entry["name"], _color(entry["name"], entry.get("color")), _value(entry.get("value", index))


def _labels(what: str, classes: Sequence[Any], void: Iterable[Any]) -> LabelTable:
    void = list(void)
    if both := sorted(set(classes) & set(void)):
        raise ValueError(f"{what} {both} are both a class and void")
    return LabelTable({key: index for index, key in enumerate(classes)} | dict.fromkeys(void, IGNORE_INDEX))


def _value(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value <= 255:
        raise ValueError(f"values in index masks are whole numbers from 0 to 255, got {value!r}")
    return value


def _check_keys(what: str, mapping: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in mapping:
        if key not in known:
            raise ValueError(f"unknown {what}: {key!r}; expected one of {', '.join(known)}")


def _color(name: str, value: Any) -> Color:
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in value):
        raise ValueError(f"{name} needs a color of three whole numbers from 0 to 255, got {value!r}")
    red, green, blue = value
    return red, green, blue


def _triple(name: str, value: Any) -> Triple:
    numbers = list(value) if isinstance(value, (list, tuple)) else []
    if len(numbers) != 3 or not all(isinstance(number, (int, float)) and 0 < number <= 1 for number in numbers):
        raise ValueError(f"{name} must be three numbers between 0 and 1, got {value!r}")
    return numbers[0], numbers[1], numbers[2]
