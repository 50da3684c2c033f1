"""Download of one file with pooch, which provides checksum, temporary file and progress bar.

In addition, an interrupted download is resumed, by this call or the next; there may be several URLs; and without a
network the download fails within seconds.
"""

import shutil
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pooch
import requests

ATTEMPTS = 4
ANSWER_S = 3.0
READ_S = 30.0
CHUNK = 1 << 16


class DownloadError(RuntimeError):
    """A data set could not be fetched; the message lists the URLs, their failures, and what to do instead."""


def fetch(urls: Sequence[str], target: Path, *, checksum: str | None, progress: bool = True, wait_s: float = 1) -> None:
    """Download a file from the first URL that has the right content.

    The bytes go to `<target>.part`. A later call resumes it, so a killed download loses nothing and never leaves
    `target` itself incomplete.

    Args:
        urls: URLs of the same file, in order of preference; http, https or file.
        target: Destination file.
        checksum: Such as "md5:6cd6..."; None if the publisher gives none, and the content must be checked later.
        progress: Show a progress bar.
        wait_s: Seconds before the first retry of a broken connection; they double with each further one.

    Raises:
        DownloadError: No URL provided the right file.
        PermissionError: The folder cannot be written.
    """
    pooch.get_logger().setLevel("ERROR")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    failures = []
    resume = partial(_download, part=part, progress=progress, wait_s=wait_s)
    for url in urls:
        download = _copy_file if url.startswith("file:") else resume
        try:
            pooch.retrieve(url, checksum, fname=target.name, path=target.parent, downloader=download)
            return
        except PermissionError:  # of a folder here, so that other URLs would not help
            raise
        except OSError as error:  # requests' errors are OSErrors, too
            failures.append(f"{url}: {error}")
        except ValueError as error:
            if "does not match the known hash" not in str(error):
                raise
            failures.append(f"{url}: has other content than the publisher's ({checksum} expected)")
    raise DownloadError(
        f"{target.name} could not be downloaded:\n"
        + "\n".join(f"  {failure}" for failure in failures)
        + f"\nTo fix it: try again later, which resumes the download; or download {target.name} on another machine and "
        "pass its folder, or another URL, with --mirrors"
    )


def _copy_file(url: str, output_file: str, pooch: Any) -> None:
    """Downloader for file URLs, which pooch does not support."""
    # on Windows the path of file:///C:/x is C:\x, not /C:/x
    try:
        shutil.copyfile(url2pathname(urlsplit(url).path), output_file)
    except PermissionError as error:  # of a source that another URL may replace
        raise OSError(str(error)) from error


def _download(url: str, output_file: str, pooch: Any, *, part: Path, progress: bool, wait_s: float) -> None:
    """Downloader that fills the partial file until it is complete, or `ATTEMPTS` in a row brought nothing new."""
    _require_answer(url)
    fruitless = 0
    while True:
        before = _size(part)
        try:
            _continue(url, part, progress)
            break
        except requests.HTTPError as error:
            if getattr(error.response, "status_code", None) != requests.codes.range_not_satisfiable:
                raise
            # there are no further bytes: the file is complete, or wrong, which the checksum detects
            break
        except requests.RequestException:
            fruitless = 0 if _size(part) > before else fruitless + 1
            if fruitless == ATTEMPTS:
                raise
            time.sleep(wait_s * 2**fruitless)
    shutil.move(part, output_file)


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _continue(url: str, part: Path, progress: bool) -> None:
    headers = {"Accept-Encoding": "identity"}
    if size := _size(part):
        headers["Range"] = f"bytes={size}-"
    with part.open("ab") as file:

        def begin(response: requests.Response, **_: Any) -> None:
            if response.status_code == requests.codes.ok:  # the whole file, not the requested range
                file.truncate(0)

        options = {"headers": headers, "hooks": {"response": begin}, "timeout": (ANSWER_S, READ_S)}
        pooch.HTTPDownloader(progressbar=progress, chunk_size=CHUNK, **options)(url, file, None)


def _require_answer(url: str) -> None:
    """Raise within seconds if no server answers; a DNS look-up can take longer than any timeout of requests."""
    failures: list[requests.RequestException] = []

    def request() -> None:
        try:
            requests.head(url, timeout=ANSWER_S)
        except requests.RequestException as error:
            failures.append(error)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if thread.is_alive() or failures:
        raise requests.ConnectionError(failures[0] if failures else f"no answer within {ANSWER_S:g} seconds")
