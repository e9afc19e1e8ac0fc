"""How much an archive may unpack to: images hardly shrink, so what grows a hundredfold is no archive of images.

A gzip of 10 MB can hold 10 GB of zeros, and a parquet of a few kB a page of gigabytes, or one long text that stands in
it once and is the value of every row.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

MOST_UNPACKED = 512_000_000
"""Bytes that anything may unpack to."""
TIMES = 20
"""And how many times its packed size on top of them."""
COPIES = 4
"""Of rows in memory while they are read: pyarrow's, with room to grow, and Python's."""
OPENERS: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""First bytes of a compressed file → what reads it piece by piece."""


class UnpackingError(OSError):
    """Something unpacks to more than its size allows."""


def most_unpacked(packed: int) -> int:
    """Bytes that so many packed bytes may become."""
    return MOST_UNPACKED + TIMES * packed


def group_batches(file: Any, group: int, columns: Sequence[str], rows: int, **options: Any) -> Iterator[Any]:
    """Columns of a row group of a `pyarrow.parquet.ParquetFile`, `rows` rows at a time or fewer; as `check_columns`.

    Each value may be as large as all that the columns unpack to, so fewer rows are taken of large ones.
    """
    unpacked = check_columns(file, group, columns)
    at_once = max(1, min(rows, MOST_UNPACKED // COPIES // max(1, unpacked)))
    yield from file.iter_batches(batch_size=at_once, row_groups=[group], columns=list(columns), **options)


def check_columns(file: Any, group: int, columns: Sequence[str]) -> int:
    """Bytes that columns of a row group unpack to. UnpackingError, before any is read: more than the limit."""
    row_group = file.metadata.row_group(group)
    found = [row_group.column(index) for index in range(row_group.num_columns)]
    wanted = [column for column in found if column.path_in_schema.split(".")[0] in columns]
    packed = sum(column.total_compressed_size for column in wanted)
    unpacked = sum(column.total_uncompressed_size for column in wanted)
    if unpacked > most_unpacked(packed):
        raise UnpackingError(
            f"row group {group} unpacks from {packed:,} to {unpacked:,} bytes, over the limit of "
            f"{most_unpacked(packed):,}; write it with smaller row groups"
        )
    return int(unpacked)


def _plain(path: Path) -> Any:
    return path.open("rb")


class BoundedFile:
    """A compressed file to read from; UnpackingError once it has given more than its size allows."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            start = file.read(8)
        opener = next((found for magic, found in OPENERS.items() if start.startswith(magic)), _plain)
        self._file = opener(path)
        self._limit = most_unpacked(path.stat().st_size)
        self._left = self._limit

    def read(self, size: int) -> bytes:
        data = self._file.read1(min(size, self._left + 1))  # `read` loses what a file that breaks off still has
        self._left -= len(data)
        if self._left < 0:
            raise UnpackingError(f"it unpacks to more than {self._limit:,} bytes; repack it without compression")
        return data

    def close(self) -> None:
        self._file.close()
