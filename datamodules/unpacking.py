"""Unpack an archive from the network: nothing lands outside the folder, and only plain files land at all."""

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from rich.progress import track


class ArchiveError(RuntimeError):
    """The archive is damaged, or tries to write where it must not."""


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    plain: bool
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, target: Path, *, inside: str, max_bytes: int, progress: bool = True) -> None:
    """Unpack what lies below one folder of an archive.

    Args:
        archive: A zip or tar file.
        target: Where the content of the folder shall lie.
        inside: The folder in the archive, such as "VOCdevkit/VOC2012"; "*" stands for any name of one level.
        max_bytes: The most that may come out.
        progress: Show a progress bar.

    Raises:
        ArchiveError: The archive is damaged; or a member has an absolute path or one that leads upwards, or is a link
            or a device, or all together would be larger than `max_bytes`, and then nothing has been written.
    """
    try:
        _unpack(archive, target, inside, max_bytes, progress)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ArchiveError(f"{archive.name} is damaged: {error}") from error


def _unpack(archive: Path, target: Path, inside: str, max_bytes: int, progress: bool) -> None:
    with _members(archive) as members:
        chosen = [(member, place) for member in members if (place := _place(member, inside, archive)) is not None]
        size = sum(member.size for member, _ in chosen)
        if size > max_bytes:
            raise ArchiveError(f"{archive.name} would unpack to {size:,} bytes, more than {max_bytes:,} expected")
        for member, place in track(chosen, f"Unpacking {archive.name}", disable=not progress):
            path = target.joinpath(*place.parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            source = member.open()
            if source is None:
                raise ArchiveError(f"{archive.name} holds {member.name!r}, which is not a file")
            with source, path.open("wb") as file:
                shutil.copyfileobj(source, file)


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            # the high 16 bits are the Unix mode, in which 0o12 is a symbolic link
            yield [
                _Member(info.filename, info.file_size, info.external_attr >> 28 != 0o12, partial(zipped.open, info))
                for info in zipped.infolist()
                if not info.is_dir()
            ]
    else:
        with tarfile.open(archive) as tarred:
            yield [
                _Member(info.name, info.size, info.isreg(), partial(tarred.extractfile, info))
                for info in tarred.getmembers()
                if not info.isdir()
            ]


def _place(member: _Member, inside: str, archive: Path) -> PurePosixPath | None:
    """Where the member goes, relative to the target; None where it is not wanted."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in path.parts[0]:
        raise ArchiveError(f"{archive.name} holds {member.name!r}, which leads out of the folder it is unpacked to")
    folder = PurePosixPath(inside).parts
    matches = all(wanted in ("*", part) for wanted, part in zip(folder, path.parts, strict=False))
    if len(path.parts) <= len(folder) or not matches:
        return None
    if not member.plain:
        raise ArchiveError(f"{archive.name} holds {member.name!r}, which is a link or a device, not a file")
    return PurePosixPath(*path.parts[len(folder) :])
