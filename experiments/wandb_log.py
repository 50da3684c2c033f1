"""Reading and writing of W&B's log files (`run-ID.wandb`), complete or cut off."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# LevelDB's log format: a header, then blocks of 32 KiB that hold fragments of records
HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK = 32768
FRAGMENT_HEADER = struct.Struct("<IHB")  # checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
# marks a W&B folder whose run has ended, but could not be uploaded completely
UNDELIVERED = "undelivered"


def new_record() -> Any:
    """An empty message of W&B's type `Record`."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # its classes are created at import
    return messages.Record()


def read_records(file: Path) -> list[Any]:
    """Read the records of a log up to the first damaged one; none if it is no log of W&B.

    A process that is killed leaves a log that ends in the middle of a record, or of the header.

    Args:
        file: `run-ID.wandb`.

    Returns:
        Messages of W&B's type `Record`.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "run-a.wandb"
        >>> _ = file.write_bytes(HEADER)
        >>> read_records(file)
        []
    """
    from google.protobuf.message import DecodeError

    records = []
    for data in _read(file.read_bytes()):
        record = new_record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            break
        records.append(record)
    return records


def write_records(file: Path, records: Iterable[Any]) -> None:
    """Write a log that `wandb sync` reads; records are renumbered."""
    content = bytearray(HEADER)
    for number, record in enumerate(records, start=1):
        record.num = number
        _append(content, record.SerializeToString())
    file.write_bytes(content)


def _read(content: bytes) -> Iterator[bytes]:
    if not content.startswith(HEADER):
        return
    at, record = len(HEADER), b""
    while at + FRAGMENT_HEADER.size <= len(content):
        left = BLOCK - at % BLOCK
        if left < FRAGMENT_HEADER.size:  # padding
            at += left
            continue
        checksum, length, kind = FRAGMENT_HEADER.unpack_from(content, at)
        fragment = content[at + FRAGMENT_HEADER.size : at + FRAGMENT_HEADER.size + length]
        if len(fragment) < length or _checksum(kind, fragment) != checksum:
            return
        record = fragment if kind in (FULL, FIRST) else record + fragment
        at += FRAGMENT_HEADER.size + length
        if kind in (FULL, LAST):
            yield record


def _append(content: bytearray, record: bytes) -> None:
    done, begun = 0, False
    while True:
        left = BLOCK - len(content) % BLOCK
        if left < FRAGMENT_HEADER.size:
            content += bytes(left)
            continue
        fragment = record[done : done + left - FRAGMENT_HEADER.size]
        done += len(fragment)
        ends = done == len(record)
        kind = (LAST if begun else FULL) if ends else (MIDDLE if begun else FIRST)
        content += FRAGMENT_HEADER.pack(_checksum(kind, fragment), len(fragment), kind) + fragment
        if ends:
            return
        begun = True


def _checksum(kind: int, fragment: bytes) -> int:
    return zlib.crc32(fragment, zlib.crc32(bytes([kind])))
