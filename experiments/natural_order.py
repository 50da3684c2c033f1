"""Paths in the order that people count in: crf1, crf5, crf10."""

import re
from pathlib import Path


def natural_order(path: Path) -> list[str | int]:
    """A key for sorting, in which the digits of a path are numbers.

    Example:
        >>> sorted(map(Path, ["crf10", "crf5", "crf1", "ce"]), key=natural_order)
        [PosixPath('ce'), PosixPath('crf1'), PosixPath('crf5'), PosixPath('crf10')]
    """
    # every second piece is a number, so that pieces at one place can be compared
    return [int(piece) if index % 2 else piece for index, piece in enumerate(re.split(r"(\d+)", path.as_posix()))]
