"""W&B's log files (`run-ID.wandb`): their records, read as far as they are whole, and written."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# LevelDB's log format: a header, then blocks of 32 KiB that hold pieces of records
HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK = 32768
PIECE = struct.Struct("<IHB")  # checksum, length, kind
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def new_record() -> Any:
    """An empty message of W&B's type `Record`."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # its classes are made when it is imported
    return messages.Record()


def read_records(file: Path) -> list[Any]:
    """The records of a log up to the first that is damaged; none where it is no log of W&B.

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
    """Write a log that `wandb sync` reads; records are numbered anew."""
    content = bytearray(HEADER)
    for number, record in enumerate(records, start=1):
        record.num = number
        _append(content, record.SerializeToString())
    file.write_bytes(content)


def _read(content: bytes) -> Iterator[bytes]:
    if not content.startswith(HEADER):
        return
    at, record = len(HEADER), b""
    while at + PIECE.size <= len(content):
        left = BLOCK - at % BLOCK
        if left < PIECE.size:  # padding
            at += left
            continue
        checksum, length, kind = PIECE.unpack_from(content, at)
        piece = content[at + PIECE.size : at + PIECE.size + length]
        if len(piece) < length or _checksum(kind, piece) != checksum:
            return
        record = piece if kind in (WHOLE, FIRST) else record + piece
        at += PIECE.size + length
        if kind in (WHOLE, LAST):
            yield record


def _append(content: bytearray, record: bytes) -> None:
    done, begun = 0, False
    while True:
        left = BLOCK - len(content) % BLOCK
        if left < PIECE.size:
            content += bytes(left)
            continue
        piece = record[done : done + left - PIECE.size]
        done += len(piece)
        ends = done == len(record)
        kind = (LAST if begun else WHOLE) if ends else (MIDDLE if begun else FIRST)
        content += PIECE.pack(_checksum(kind, piece), len(piece), kind) + piece
        if ends:
            return
        begun = True


def _checksum(kind: int, piece: bytes) -> int:
    return zlib.crc32(piece, zlib.crc32(bytes([kind])))
