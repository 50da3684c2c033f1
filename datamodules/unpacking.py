"""Safe unpacking of archives from the network: only plain files, and only inside the target folder."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from rich.progress import track

LONGEST_NAME = 255
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


class ArchiveError(RuntimeError):
    """The archive is damaged, of an unknown kind, or has members that are not allowed."""


class _Member(NamedTuple):
    name: str
    size: int
    fault: str | None
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, target: Path, *, inside: str, max_bytes: int, progress: bool = True) -> None:
    """Unpack the content of one folder of an archive.

    Args:
        archive: A zip or tar file.
        target: Destination of the folder's content.
        inside: The folder in the archive, such as "VOCdevkit/VOC2012"; "*" stands for any name of one level.
        max_bytes: Largest size to unpack.
        progress: Show a progress bar.

    Raises:
        ArchiveError: The archive is damaged or compressed in an unknown way; or a member has no name, one that is too
            long, an absolute path or one that leads upwards; or a wanted member is a link, a device or encrypted, or
            all together would be larger than `max_bytes`. In all but the first case nothing is written.
    """
    with _members(archive) as members:
        placed = [(member, _relative(member, inside, archive)) for member in members]
        chosen = [(member, target / path) for member, path in placed if path is not None]
        size = sum(member.size for member, _ in chosen)
        if size > max_bytes:
            raise ArchiveError(f"{archive.name} would unpack to {size:,} bytes, more than {max_bytes:,} expected")
        for member, path in track(chosen, f"Unpacking {archive.name}", disable=not progress):
            path.parent.mkdir(parents=True, exist_ok=True)
            source = member.open()
            if source is None:
                raise ArchiveError(f"{archive.name} has {member.name!r}, which is not a file")
            with source, path.open("wb") as file:
                shutil.copyfileobj(source, file)


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    """Open an archive; damage that is found while its members are read in the block is an ArchiveError as well."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                # ZipInfo.is_dir fails with an empty name
                files = [info for info in zipped.infolist() if not info.filename.endswith("/")]
                yield [_Member(i.filename, i.file_size, _zip_fault(i), partial(zipped.open, i)) for i in files]
        else:
            with tarfile.open(archive) as tarred:
                infos = [info for info in tarred.getmembers() if not info.isdir()]
                yield [_Member(i.name, i.size, _tar_fault(i), partial(tarred.extractfile, i)) for i in infos]
    except _DAMAGE as error:
        raise ArchiveError(f"{archive.name} is damaged, or compressed in an unknown way: {error}") from error
    except OSError as error:
        if error.errno is not None:  # an error of the file system; gzip and bz2 report damage without a number
            raise
        raise ArchiveError(f"{archive.name} is damaged: {error}") from error


def _tar_fault(info: tarfile.TarInfo) -> str | None:
    return None if info.isreg() else "is a link or a device, not a file"


def _zip_fault(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 1:
        return "is encrypted"
    # the high 16 bits are the Unix mode, in which 0o12 is a symbolic link
    return "is a link or a device, not a file" if info.external_attr >> 28 == 0o12 else None


def _relative(member: _Member, inside: str, archive: Path) -> PurePosixPath | None:
    """Return the member's path below `inside`; None if it is outside."""
    path = PurePosixPath(member.name)
    folder = PurePosixPath(inside).parts
    matches = all(wanted in ("*", part) for wanted, part in zip(folder, path.parts, strict=False))
    chosen = len(path.parts) > len(folder) and matches
    if fault := _name_fault(member.name) or (member.fault if chosen else None):
        raise ArchiveError(f"{archive.name} has {member.name[:100]!r}, which {fault}")
    return PurePosixPath(*path.parts[len(folder) :]) if chosen else None


def _name_fault(name: str) -> str | None:
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name:
        return "has no usable name"
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]:
        return "leads out of the folder it is unpacked to"
    if any(len(part.encode(errors="surrogateescape")) > LONGEST_NAME for part in parts):
        return f"has a name of more than {LONGEST_NAME} bytes"
    return None
