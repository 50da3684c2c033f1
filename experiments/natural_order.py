"""Natural sort order of paths: crf1, crf5, crf10."""

import re
from pathlib import Path


def natural_order(path: Path) -> list[str | int]:
    """Sort key that compares the digits of a path as numbers.

    Example:
        >>> sorted(map(Path, ["crf10", "crf5", "crf1", "ce"]), key=natural_order)
        [PosixPath('ce'), PosixPath('crf1'), PosixPath('crf5'), PosixPath('crf10')]
    """
    # every second piece is a number, so that pieces at the same index can be compared
    return [int(piece) if index % 2 else piece for index, piece in enumerate(re.split(r"(\d+)", path.as_posix()))]
