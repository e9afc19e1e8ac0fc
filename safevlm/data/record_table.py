"""Records that are read when they are asked for: a sequence of a million takes some MB of a process, not 3 GB.

Every record file is checked whole at the start (`safevlm.data.record_store`), which leaves a packed copy of its records
and columns of facts about them. A table is a choice of rows of such copies. What a run was started with is what it
trains on, also where somebody writes into the record file meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from safevlm.data.record_facts import Facts
from safevlm.data.record_store import RecordStore, open_store
from safevlm.data.records import Record, RecordError
from safevlm.taxonomy import Taxonomy

Change = Callable[[Record], Record]
"""Depends on the record alone; may leave it as it is. Of images it changes nothing."""


def open_records(files: Sequence[str | Path], taxonomy: Taxonomy, images: str | Path = "") -> RecordTable:
    """The records of `read_records`, all of them checked, without holding them. RecordError: as there."""
    stores = tuple(open_store(Path(file), taxonomy, images) for file in files)
    sizes = [len(store) for store in stores]
    if not sum(sizes):
        raise RecordError(f"{', '.join(map(str, files))}: no records")
    starts = np.cumsum([0, *sizes])
    facts = stores[0].facts if len(stores) == 1 else np.concatenate([store.facts for store in stores])
    return RecordTable(stores, starts, np.arange(sum(sizes)), facts)


class RecordTable(Sequence[Record]):
    """Records by index, in order. Slices and choices are tables too; processes and threads may share one."""

    def __init__(
        self,
        stores: tuple[RecordStore, ...],
        starts: NDArray[Any],
        rows: NDArray[Any],
        facts: Facts,
        changes: tuple[Change, ...] = (),
    ) -> None:
        """`starts`: the first row of each store, counted over all; `rows`, `facts` (n,): those of this table."""
        self._stores, self._starts, self._rows, self._changes = stores, starts, rows, changes
        self.facts = facts

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> RecordTable: ...
    def __getitem__(self, index: int | slice) -> Record | RecordTable:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        store, row = self._place(self._rows[index])
        record = store.record(row)
        for change in self._changes:
            record = change(record)
        return record

    def images(self) -> Iterator[tuple[str, ...]]:
        """The paths of every record's images."""
        for row in self._rows:
            store, own = self._place(row)
            yield store.images(own)

    def take(self, rows: NDArray[Any]) -> RecordTable:
        """The records at these indices."""
        return RecordTable(self._stores, self._starts, self._rows[rows], self.facts[rows], self._changes)

    def changed(self, change: Change, facts: Facts) -> RecordTable:
        """Records that `change` is applied to when they are read; `facts`: what is then known of them."""
        return RecordTable(self._stores, self._starts, self._rows, facts, (*self._changes, change))

    def _place(self, row: int) -> tuple[RecordStore, int]:
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._stores[index], int(row - self._starts[index])


def choose(records: Sequence[Record], rows: NDArray[Any]) -> Sequence[Record]:
    """The records at these indices, without reading them where they are a table."""
    return records.take(rows) if isinstance(records, RecordTable) else [records[row] for row in rows]


def image_paths(records: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    """The paths of every record's images, without reading the records where they are a table."""
    if isinstance(records, RecordTable):
        yield from records.images()
        return
    yield from (tuple(map(str, record.images)) for record in records)
