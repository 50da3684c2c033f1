"""Strict reading of split lists."""

from pathlib import Path, PurePosixPath, PureWindowsPath

from beyondpixel.datamodules.datasets.errors import data_error

LONGEST_NAME, LONGEST_PATH = 255, 2000  # bytes; a system's limit of 4096 counts the folders above as well


def read_list(listing: Path, *, remedy: str, absolute: bool = False) -> list[str]:
    """Read the lines of a list of file names, without empty ones.

    Args:
        listing: A UTF-8 text file.
        remedy: How to repair it, for errors.
        absolute: Whether names may be absolute paths (the caller uses only their last parts).

    Raises:
        DataError: It is not UTF-8 text, or has a name that leads out of the data set's folder.
    """
    try:
        lines = [line.strip() for line in listing.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise data_error(
            f"{listing} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x})",
            expected="file names, one entry per line, as UTF-8 text",
            remedy=remedy,
        ) from None
    lines = [line for line in lines if line]
    invalid = [repr(line[:100]) for line in lines if not all(_stays_inside(name, absolute) for name in line.split())]
    if invalid:
        raise data_error(
            f"{listing} has names that cannot be used",
            invalid,
            expected="names of files below the data set's folder" + (", or their paths" if absolute else ""),
            remedy=remedy,
        )
    return lines


def _stays_inside(name: str, absolute: bool) -> bool:
    path = PurePosixPath(name)
    leads_out = ".." in path.parts or (not absolute and (path.is_absolute() or bool(PureWindowsPath(name).anchor)))
    too_long = len(name.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_NAME for part in path.parts)
    return not leads_out and not too_long and "\0" not in name
