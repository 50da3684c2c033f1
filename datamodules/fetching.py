"""Download of one file with pooch: checksum, temporary file and progress bar are pooch's.

Three things that pooch lacks are added: a broken download is continued, by this call or by the next; there may be
several addresses; and without a network the answer comes within seconds.
"""

import shutil
import threading
import time
from collections.abc import Sequence
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
    """A data set could not be fetched; the message lists the addresses, what failed, and what to do instead."""


def fetch(urls: Sequence[str], target: Path, *, checksum: str | None, progress: bool = True, wait_s: float = 1) -> None:
    """Download a file from the first address that has it as it should be.

    The bytes go to `<target>.part`. A later call continues there, so a killed download costs nothing and never leaves
    `target` itself incomplete.

    Args:
        urls: Addresses of the same file, in order of preference; http, https or file.
        target: Where to put it.
        checksum: Such as "md5:6cd6..."; None where the publisher gives none, and the content must be checked later.
        progress: Show a progress bar.
        wait_s: Seconds before the first retry of a broken connection; they double with each further one.

    Raises:
        DownloadError: No address gave the right file.
    """
    pooch.get_logger().setLevel("ERROR")
    part = target.with_name(f"{target.name}.part")
    failures = []
    for url in urls:
        download = _copy_file if url.startswith("file:") else _ResumingDownload(part, progress, wait_s)
        try:
            pooch.retrieve(url, checksum, fname=target.name, path=target.parent, downloader=download)
            return
        except OSError as error:  # requests' errors are OSErrors, too
            failures.append(f"{url}: {error}")
        except ValueError as error:
            if "does not match the known hash" not in str(error):
                raise
            failures.append(f"{url}: gave other bytes than the publisher's ({checksum} expected)")
    raise DownloadError(
        f"{target.name} could not be downloaded:\n"
        + "\n".join(f"  {failure}" for failure in failures)
        + f"\nTo fix it: try again later, which continues where it broke off; or fetch {target.name} on another "
        "machine and give its folder, or another address, with --mirrors"
    )


def _copy_file(url: str, output_file: str, pooch: Any) -> None:
    """Downloader for file addresses, which pooch does not know."""
    # on Windows the path of file:///C:/x is C:\x, not /C:/x
    shutil.copyfile(url2pathname(urlsplit(url).path), output_file)


class _ResumingDownload:
    """pooch.HTTPDownloader to a file of its own, which is continued after each break.

    Args:
        part: The file.
        progress: Show a progress bar.
        wait_s: Seconds before the first retry.
    """

    def __init__(self, part: Path, progress: bool, wait_s: float) -> None:
        self.part = part
        self.progress = progress
        self.wait_s = wait_s

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """Download until the file is whole, or until some attempts in a row have brought nothing new."""
        _require_answer(url)
        fruitless = 0
        while True:
            before = self._size()
            try:
                self._continue(url)
                break
            except requests.HTTPError as error:
                if getattr(error.response, "status_code", None) != requests.codes.range_not_satisfiable:
                    raise
                # nothing lies beyond what is here already: it is whole, or wrong, which the checksum tells
                break
            except requests.RequestException:
                fruitless = 0 if self._size() > before else fruitless + 1
                if fruitless == ATTEMPTS:
                    raise
                time.sleep(self.wait_s * 2**fruitless)
        shutil.move(self.part, output_file)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _continue(self, url: str) -> None:
        headers = {"Accept-Encoding": "identity"}
        if size := self._size():
            headers["Range"] = f"bytes={size}-"
        with self.part.open("ab") as file:

            def begin(response: requests.Response, **_: Any) -> None:
                if response.status_code == requests.codes.ok:  # all of the file, not what follows
                    file.truncate(0)

            hooks = {"response": begin}
            options = {"headers": headers, "hooks": hooks, "timeout": (ANSWER_S, READ_S)}
            download = pooch.HTTPDownloader(progressbar=self.progress, chunk_size=CHUNK, **options)
            download(url, file, None)


def _require_answer(url: str) -> None:
    """Raise within seconds where no server answers; looking up a name can take longer than any time-out of requests."""
    failures: list[requests.RequestException] = []

    def ask() -> None:
        try:
            requests.head(url, timeout=ANSWER_S)
        except requests.RequestException as error:
            failures.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if thread.is_alive() or failures:
        raise requests.ConnectionError(failures[0] if failures else f"no answer within {ANSWER_S:g} seconds")
