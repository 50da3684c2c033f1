"""Download one file: resumed where it broke off, checked, and under its own name only when it is whole."""

import hashlib
import shutil
import time
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

_BLOCK = 1 << 20
_ATTEMPTS = 5
_TIMEOUT_S = 30
# a connection that breaks off shows as any of these
_BROKEN = (URLError, ConnectionError, TimeoutError, HTTPException)


class DownloadError(RuntimeError):
    """A data set could not be fetched; the message says from where, why not, and what to do instead."""


class _BrokenOffError(ConnectionError):
    """The server closed the connection before the end of the file."""


def fetch(urls: Sequence[str], target: Path, *, checksum: str | None, progress: bool = True, wait_s: float = 1) -> None:
    """Download a file from the first address that has it as it should be.

    The bytes go to `<target>.part`. A later call continues there, so a killed download costs nothing and never leaves
    `target` itself incomplete.

    Args:
        urls: Addresses of the same file, in order of preference; http, https or file.
        target: Where it shall lie.
        checksum: Such as "md5:6cd6..."; None where the publisher gives none, and the content must be checked later.
        progress: Show a progress bar.
        wait_s: Seconds before the first retry; they double with each further one.

    Raises:
        DownloadError: No address gave the right file.
    """
    if target.is_file() and (checksum is None or _matches(target, checksum)):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    failures = []
    for url in urls:
        try:
            _fetch_whole(url, part, progress=progress, wait_s=wait_s)
        except (*_BROKEN, OSError) as error:
            failures.append(f"{url}: {error}")
            continue
        if checksum is None or _matches(part, checksum):
            part.replace(target)
            return
        failures.append(f"{url}: gave other bytes than the publisher's ({checksum} expected)")
        # nothing of it can be trusted, so the next address starts from the beginning
        part.unlink()
    raise DownloadError(
        f"{target.name} could not be downloaded:\n"
        + "\n".join(f"  {failure}" for failure in failures)
        + f"\nTo fix it: try again later, which continues where it broke off; or fetch {target.name} on another "
        "machine and give its folder, or another address, as --mirror"
    )


def _fetch_whole(url: str, part: Path, *, progress: bool, wait_s: float) -> None:
    """Download, and continue after each break, until five in a row have brought nothing new."""
    furthest, fruitless = 0, 0
    while True:
        try:
            _fetch_rest(url, part, progress=progress)
            return
        except HTTPError:
            # the server answered, and would answer the same again
            raise
        except _BROKEN:
            have = part.stat().st_size if part.is_file() else 0
            fruitless = 0 if have > furthest else fruitless + 1
            furthest = max(furthest, have)
            if fruitless == _ATTEMPTS:
                raise
            time.sleep(wait_s * 2**fruitless)


def _fetch_rest(url: str, part: Path, *, progress: bool) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(request, timeout=_TIMEOUT_S)
    except HTTPError as error:
        if error.code == 416 and have:
            # nothing lies beyond what is here already: it is whole, or it is wrong, which the checksum tells
            return
        raise
    with response:
        continued = getattr(response, "status", 200) == 206
        have = have if continued else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with part.open("ab" if continued else "wb") as file, _bar(progress) as bar:
            task = bar.add_task(unquote(Path(urlsplit(url).path).name), total=total, completed=have)
            while block := response.read(_BLOCK):
                file.write(block)
                bar.advance(task, len(block))
    if total is not None and part.stat().st_size < total:
        # http.client ends a read quietly when the connection is gone
        raise _BrokenOffError(f"the connection broke off at {part.stat().st_size} of {total} bytes")


def _bar(progress: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), disable=not progress)


def _matches(path: Path, checksum: str) -> bool:
    algorithm, expected = checksum.split(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest() == expected


def install(source: Path, target: Path, *, last: Sequence[str] = ()) -> None:
    """Move a finished folder to its place; what lies there already is completed, file by file.

    Args:
        source: The finished folder, on the same file system.
        target: Its place.
        last: Names of files that are moved after all others: those whose presence makes the folder look complete.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        source.replace(target)
        return
    files = [path for path in source.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda path: (path.name in last, path)):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    shutil.rmtree(source)
