"""What the scan leaves on disk: one parquet file per shard, whole or not there.

A shard holds what an image is (names, size, digests, fingerprint) and the head's probabilities; what follows from them
under a threshold and a policy is added when the shards are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from safevlm.analysis.audit.images import ReadImage
from safevlm.analysis.audit.sources import arrow, printable
from safevlm.data.atomic_write import atomic_file
from safevlm.taxonomy import Taxonomy

CATEGORY, LEVEL = "category_", "level_"
"""Columns of probabilities begin with these."""


@dataclass(frozen=True)
class ShardVerdicts:
    """The head's probabilities of an image; None where it could not be read."""

    image: ReadImage
    category: Sequence[float] | None = None
    level: Sequence[float] | None = None
    frame: int | None = None
    """The frame they are of, the gravest; the first is 1."""


@dataclass(frozen=True)
class Shards:
    """The folder of an audit's shards."""

    folder: Path
    taxonomy: Taxonomy
    prefix: str = "shard"
    """Of file names."""

    def path(self, shard: int) -> Path:
        return self.folder / f"{self.prefix}-{shard:06d}.parquet"

    def missing(self, shards: int) -> list[int]:
        """Numbers of the shards without a file."""
        return [shard for shard in range(shards) if not self.path(shard).is_file()]

    def write(self, shard: int, rows: Sequence[ShardVerdicts]) -> None:
        """Writes a shard; it has its name only when it is complete."""
        pa = arrow()
        columns = {name: [read(row) for row in rows] for name, (_, read) in COLUMNS.items()}
        columns |= _probabilities(rows, CATEGORY, self.taxonomy.category_names, lambda row: row.category)
        columns |= _probabilities(rows, LEVEL, self.taxonomy.level_names, lambda row: row.level)
        with atomic_file(self.path(shard)) as partial:
            arrow("parquet").write_table(pa.table(columns, schema=self.schema), partial, compression="zstd")

    def read(self, shard: int, columns: Sequence[str] | None = None) -> Any:
        """A shard as an arrow table; what an earlier version did not write is null."""
        file = arrow("parquet").ParquetFile(self.path(shard))
        wanted = columns or self.schema.names
        table = file.read([name for name in wanted if name in file.schema_arrow.names])
        for position, name in enumerate(wanted):
            if name not in table.column_names:
                kind = self.schema.field(name).type
                table = table.add_column(position, name, arrow().nulls(len(table), kind))
        return table

    def tables(self, shards: int, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """All shards in order, one at a time."""
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
        """(n, categories) and (n, levels); NaN where an image could not be read."""
        return tuple(
            np.stack([table[f"{prefix}{name}"].to_numpy() for name in names], axis=1)
            for prefix, names in ((CATEGORY, self.taxonomy.category_names), (LEVEL, self.taxonomy.level_names))
        )  # type: ignore[return-value]


def open_shards(out: Path, taxonomy: Taxonomy) -> Shards:
    """The shards of the audit in a folder; an audit begun by an earlier version goes on under its own names."""
    earlier = out / "parts"
    shards = Shards(earlier, taxonomy, "part") if earlier.is_dir() else Shards(out / "shards", taxonomy)
    shards.folder.mkdir(exist_ok=True)
    return shards


def _probabilities(
    rows: Sequence[ShardVerdicts],
    prefix: str,
    names: Sequence[str],
    read: Callable[[ShardVerdicts], Sequence[float] | None],
) -> Mapping[str, list[float | None]]:
    found = [read(row) for row in rows]
    return {f"{prefix}{name}": [None if row is None else row[at] for row in found] for at, name in enumerate(names)}


COLUMNS: dict[str, tuple[str, Callable[[ShardVerdicts], Any]]] = {
    "index": ("int64", lambda row: row.image.placed.index),
    "path": ("string", lambda row: row.image.placed.item.path),
    "record": ("string", lambda row: row.image.placed.item.record),
    "file": ("string", lambda row: printable(row.image.placed.item.file)),
    "error": ("string", lambda row: row.image.error),
    "width": ("int32", lambda row: row.image.width),
    "height": ("int32", lambda row: row.image.height),
    "frames": ("int32", lambda row: row.image.frames),
    "frame": ("int32", lambda row: row.frame),
    "sha256": ("string", lambda row: row.image.bytes_digest.hex()),
    "pixels_sha256": ("string", lambda row: row.image.pixels_digest.hex()),
    "bits": ("uint64", lambda row: row.image.fingerprint.bits if row.image.fingerprint else 0),
    "thumb": ("binary", lambda row: row.image.fingerprint.thumb if row.image.fingerprint else b""),
}
"""Name → type, and where it comes from."""
