"""Rows of record files of any kind: JSON lists and JSONL, parquet, and the Arrow of Hugging Face's datasets.

Places are `file:line` (JSONL) or `file[index]` (all others). Arrow and parquet need pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safevlm.data.json_rows import RowError, json_rows
from safevlm.data.unpacking import group_batches

PARQUET, ARROW = ".parquet", ".arrow"
ENDINGS = (".jsonl", ".json", PARQUET, ARROW)
BATCH = 64
"""Rows of a table in memory at once; they may hold images."""


def record_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row. RowError: no such file, or not what its ending says. ImportError: no pyarrow."""
    if path.suffix.lower() not in (PARQUET, ARROW):
        yield from json_rows(path)
        return
    if not path.is_file():
        raise RowError(f"{path}: no such record file")
    index = 0
    for batch in _batches(path):
        for row in _rows(batch, path, index):
            yield f"{path}[{index}]", row
            index += 1


def _batches(path: Path) -> Iterator[Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path}: reading {path.suffix} needs pyarrow: pip install -e '.[data]'") from error
    try:
        if path.suffix.lower() == PARQUET:
            table = parquet.ParquetFile(path)
            for group in range(table.num_row_groups):
                yield from group_batches(table, group, table.schema_arrow.names, BATCH)
            return
        with pa.memory_map(str(path)) as source:
            for batch in _arrow_batches(pa, source):
                yield from (batch.slice(start, BATCH) for start in range(0, batch.num_rows, BATCH))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise RowError(f"{path}: not a table that can be read: {error}; write or download it again") from error


def _arrow_batches(pa: Any, source: Any) -> Iterator[Any]:
    """Datasets write a stream; other tools a file, which begins with a mark of its own."""
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    if not is_file:
        yield from pa.ipc.open_stream(source)
        return
    table = pa.ipc.open_file(source)
    yield from map(table.get_batch, range(table.num_record_batches))


def _rows(batch: Any, path: Path, first: int) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        raise RowError(f"{path}[{first}]: text that is not UTF-8 in this row or one of the next {BATCH}") from error
