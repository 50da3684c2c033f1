"""W&B's log format, against the reader that is written by its public description in `test_tracking.py`."""

import struct
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from beyondpixel.experiments.wandb_log import read_records, write_records


def record_of(size: int) -> Any:
    record = wandb_internal_pb2.Record()
    record.output.line = "x" * size
    return record


def described(data: bytes) -> list[bytes]:
    """Contents of the records, by the description of LevelDB's logs."""
    contents, pieces, at = [], b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        assert length <= left - 7
        pieces = (b"" if kind in (1, 2) else pieces) + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            contents.append(pieces)
    return contents


# in blocks of 32768: a header, whole records, one over three blocks, and remainders of 0 to 8 bytes behind a record
@pytest.mark.parametrize("rest", range(9))
def test_records_of_every_length_are_read_back(tmp_path: Path, rest: int) -> None:
    file = tmp_path / "run-a.wandb"
    write_records(file, [record_of(10)])
    used = file.stat().st_size
    frame = len(record_of(30000).SerializeToString()) - 30000 + 2  # and its number
    fills = 32768 - used - 7 - frame - rest
    sizes = [10, fills, 5, 70000, 1]
    write_records(file, map(record_of, sizes))
    assert [len(record.output.line) for record in read_records(file)] == sizes
    assert [record.num for record in read_records(file)] == [1, 2, 3, 4, 5]
    contents = described(file.read_bytes())
    assert [wandb_internal_pb2.Record.FromString(content).num for content in contents] == [1, 2, 3, 4, 5]


def test_a_damaged_log_gives_what_is_before_the_damage(tmp_path: Path) -> None:
    file = tmp_path / "run-a.wandb"
    write_records(file, map(record_of, (100, 200, 300)))
    whole = file.read_bytes()
    counts = []
    for end in range(len(whole) + 1):
        file.write_bytes(whole[:end])
        counts.append(len(read_records(file)))
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3}
    changed = bytearray(whole)
    changed[-1] ^= 1
    file.write_bytes(changed)
    assert [len(record.output.line) for record in read_records(file)] == [100, 200]
    file.write_text("not a log of W&B")
    assert read_records(file) == []
