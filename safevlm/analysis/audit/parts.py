"""What the scan leaves on disk: one parquet part per shard, whole or not there.

A part holds what a picture is (names, size, digests, fingerprint) and the head's probabilities; what follows from them
under a threshold and a policy is added when the parts are merged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from safevlm.analysis.audit.pictures import Picture
from safevlm.analysis.audit.sources import arrow, printable
from safevlm.taxonomy import Taxonomy

CATEGORY, LEVEL = "category_", "level_"
"""Columns of probabilities begin with these."""


@dataclass(frozen=True)
class Judged:
    """The head's probabilities of a picture; None where it could not be read."""

    picture: Picture
    category: Sequence[float] | None = None
    level: Sequence[float] | None = None


@dataclass(frozen=True)
class Parts:
    """The folder of an audit's parts."""

    folder: Path
    taxonomy: Taxonomy

    def path(self, shard: int) -> Path:
        return self.folder / f"part-{shard:06d}.parquet"

    def missing(self, shards: int) -> list[int]:
        """Shards without a part."""
        return [shard for shard in range(shards) if not self.path(shard).is_file()]

    def write(self, shard: int, rows: Sequence[Judged]) -> None:
        """Writes a part; it has its name only when it is complete."""
        pa = arrow()
        columns = {name: [read(row) for row in rows] for name, (_, read) in COLUMNS.items()}
        columns |= _probabilities(rows, CATEGORY, self.taxonomy.category_names, lambda row: row.category)
        columns |= _probabilities(rows, LEVEL, self.taxonomy.level_names, lambda row: row.level)
        write_atomically(pa.table(columns, schema=self.schema), self.path(shard))

    def read(self, shard: int, columns: Sequence[str] | None = None) -> Any:
        """A part as an arrow table."""
        return arrow("parquet").read_table(self.path(shard), columns=columns)

    def tables(self, shards: int, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """All parts in order, one at a time."""
        for shard in range(shards):
            yield self.read(shard, columns)

    @property
    def schema(self) -> Any:
        pa = arrow()
        kinds = {name: pa.type_for_alias(kind) for name, (kind, _) in COLUMNS.items()}
        kinds |= {f"{CATEGORY}{name}": pa.float32() for name in self.taxonomy.category_names}
        kinds |= {f"{LEVEL}{name}": pa.float32() for name in self.taxonomy.level_names}
        return pa.schema(kinds)

    def probabilities(self, table: Any) -> tuple[np.ndarray, np.ndarray]:
        """(n, categories) and (n, levels); NaN where a picture could not be read."""
        return tuple(
            np.stack([table[f"{prefix}{name}"].to_numpy() for name in names], axis=1)
            for prefix, names in ((CATEGORY, self.taxonomy.category_names), (LEVEL, self.taxonomy.level_names))
        )  # type: ignore[return-value]


def write_atomically(table: Any, path: Path) -> None:
    """A parquet file that is there as a whole, or not at all."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    arrow("parquet").write_table(table, staging, compression="zstd")
    os.replace(staging, path)


def _probabilities(
    rows: Sequence[Judged], prefix: str, names: Sequence[str], read: Callable[[Judged], Sequence[float] | None]
) -> Mapping[str, list[float | None]]:
    found = [read(row) for row in rows]
    return {f"{prefix}{name}": [None if row is None else row[at] for row in found] for at, name in enumerate(names)}


COLUMNS: dict[str, tuple[str, Callable[[Judged], Any]]] = {
    "index": ("int64", lambda row: row.picture.placed.index),
    "path": ("string", lambda row: row.picture.placed.item.path),
    "record": ("string", lambda row: row.picture.placed.item.record),
    "file": ("string", lambda row: printable(row.picture.placed.item.file)),
    "error": ("string", lambda row: row.picture.error),
    "width": ("int32", lambda row: row.picture.width),
    "height": ("int32", lambda row: row.picture.height),
    "sha256": ("string", lambda row: row.picture.bytes_digest.hex()),
    "pixels_sha256": ("string", lambda row: row.picture.pixels_digest.hex()),
    "bits": ("uint64", lambda row: row.picture.fingerprint.bits if row.picture.fingerprint else 0),
    "thumb": ("binary", lambda row: row.picture.fingerprint.thumb if row.picture.fingerprint else b""),
}
"""Name → type, and where it comes from."""
