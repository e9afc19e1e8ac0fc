"""Rows of a source, written down while they are looked at, so that those that are drawn need no second reading.

The file lies among the temporary ones (`TMPDIR`), has no name, and goes away with its process.
"""

from __future__ import annotations

import marshal
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from safevlm.data.atomic_write import WriteError
from safevlm.data.sources.row import ImageFile, SourceRow

BUFFER = 1 << 20
"""Bytes that are written at once."""


class RowSpool:
    """Rows by number: id, place, turns and images; 8 bytes of each stand in memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=BUFFER)  # noqa: SIM115 - open as long as the rows are wanted
        self._ends = array("q", [0])

    def add(self, row: SourceRow) -> None:
        """WriteError: the disk does not take it."""
        told = _told(row)
        try:
            self._file.write(told)
        except OSError as error:
            raise WriteError(Path(tempfile.gettempdir()), error.errno) from error
        self._ends.append(self._ends[-1] + len(told))

    def rows(self, numbers: Iterable[int]) -> Iterator[SourceRow]:
        """WriteError."""
        try:
            self._file.flush()
        except OSError as error:
            raise WriteError(Path(tempfile.gettempdir()), error.errno) from error
        file, ends = self._file.fileno(), self._ends
        for number in numbers:
            start = ends[number]
            id, place, turns, images = marshal.loads(os.pread(file, ends[number + 1] - start, start))
            yield SourceRow(id, place, turns, tuple([ImageFile(*image) for image in images]))


def _told(row: SourceRow) -> bytes:
    images = [tuple(image) for image in row.images]
    try:
        return marshal.dumps((row.id, row.place, row.turns, images))
    except ValueError:  # a source of one's own may have texts and turns of types of its own
        turns = tuple((str(speaker), str(text)) for speaker, text in row.turns)
        return marshal.dumps((str(row.id), str(row.place), turns, [(str(file), str(name)) for file, name in images]))
