"""A record file, checked once and packed: `records`, one JSON line a record, `images`, their paths, and columns.

The columns are mapped into memory, so that processes of a machine share them, and hold what they look at.

Checking a million records takes seconds on every core, so what came of it is kept in the user's cache folder
(`$XDG_CACHE_HOME/safevlm/records`, else `~/.cache/safevlm/records`), under a digest of the file, of the settings that
it was read with and of the code that read it. That its images are there is seen to at every start. Small files are
packed in memory, and where the cache folder cannot be written the copy goes away with the process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from safevlm.data.atomic_write import need_room, told_of
from safevlm.data.record_facts import FACTS, Facts
from safevlm.data.record_packing import record_of
from safevlm.data.record_parts import ABOUT, ENDS, IMAGES, NAMES, RECORDS, PackedFiles, pack, pack_into
from safevlm.data.records import Record
from safevlm.data.sources.fingerprints import file_digest
from safevlm.taxonomy import Taxonomy

SMALL = 16 << 20
"""Bytes of a record file that is packed in memory, and checked at every start."""
DAYS = 30
"""So long a packed file stays that nobody uses."""
BLOCK = 1 << 20
MOST_ROOM = 8 << 30
"""Bytes that are asked for where the file is larger; what is packed has no images in it."""
UNFINISHED = "unfinished-"


class Packed:
    """Bytes by place: of a file on the disk, shared with all processes that read it, or in memory."""

    def __init__(self, content: bytes | Path) -> None:
        self._content = content
        self._opened: BinaryIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_content": self._content, "_opened": None}

    def read(self, start: int, end: int) -> bytes:
        if isinstance(self._content, bytes):
            return self._content[start:end]
        if self._opened is None:
            self._opened = self._content.open("rb", buffering=0)
        return os.pread(self._opened.fileno(), end - start, start)  # no position that threads and forks would share

    def pieces(self, separator: bytes) -> Iterator[bytes]:
        """Everything, cut at a separator that ends each piece."""
        rest, start = b"", 0
        while block := self.read(start, start + BLOCK):
            *whole, rest = (rest + block).split(separator)
            yield from whole
            start += len(block)


class RecordStore:
    """The packed records of one file."""

    def __init__(self, file: Path, records: Packed, images: Packed, ends: NDArray[Any], facts: Facts) -> None:
        """`ends` (n, 2): where each record ends in `records`, and its paths in `images`. `facts` (n,) of FACTS."""
        self._file, self._records, self._images, self._ends, self.facts = file, records, images, ends, facts

    def __len__(self) -> int:
        return len(self._ends)

    def record(self, row: int) -> Record:
        return record_of(self._records.read(*self._range(row, 0)), self._file)

    def images(self, row: int) -> tuple[str, ...]:
        start, end = self._range(row, 1)
        return tuple(map(os.fsdecode, self._images.read(start, end).split(b"\0")[:-1]))

    def sizes(self) -> list[int]:
        """Bytes of the packed records and of their paths."""
        return [int(end) for end in self._ends[-1]] if len(self) else [0, 0]

    def has_its_images(self) -> bool:
        """Whether every image is a file."""
        return all(map(_is_file, self._images.pieces(b"\0")))

    def _range(self, row: int, column: int) -> tuple[int, int]:
        return int(self._ends[row - 1, column]) if row else 0, int(self._ends[row, column])


def open_store(file: Path, taxonomy: Taxonomy, images: str | Path = "") -> RecordStore:
    """The records of a file, checked now or in an earlier start. RecordError: as `read_records`."""
    if not file.is_file() or file.stat().st_size < SMALL:
        return _packed_in_memory(file, taxonomy, images)
    before = _state(file)
    place = cache_folder() / _key(file, taxonomy, images)
    known = _stored(file, place)
    if known is not None and known.has_its_images():
        with contextlib.suppress(OSError):
            os.utime(place)
        return known
    shutil.rmtree(place, ignore_errors=True)
    made = _pack_to_disk(file, taxonomy, images)
    return _kept(file, made, place) if _state(file) == before else _for_now(file, made)


def cache_folder() -> Path:
    """Where packed files are kept."""
    told = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(told) if os.path.isabs(told) else Path(os.path.expanduser("~/.cache"))
    return root / "safevlm" / "records"


def _key(file: Path, taxonomy: Taxonomy, images: str | Path) -> str:
    told = [file_digest(file), str(file), str(images), os.getcwd(), taxonomy.to_dict(), _code()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


@functools.cache
def _code() -> str:
    """Of what reads and packs records: another version may read the same file otherwise."""
    package = Path(__file__).parents[1]
    files = sorted([*(package / "data").glob("*.py"), *(package / "files").glob("*.py"), package / "taxonomy.py"])
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _state(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _is_file(path: bytes) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


# packing


def _packed_in_memory(file: Path, taxonomy: Taxonomy, images: str | Path) -> RecordStore:
    files = PackedFiles(*(io.BytesIO() for _ in NAMES))
    pack((file, taxonomy, images), files)
    records, paths, ends, facts = (one.getvalue() for one in files)  # type: ignore[attr-defined]  # all of them BytesIO
    columns = np.frombuffer(ends, "i8").reshape(-1, 2), np.frombuffer(facts, FACTS)
    return RecordStore(file, Packed(records), Packed(paths), *columns)


def _pack_to_disk(file: Path, taxonomy: Taxonomy, images: str | Path) -> Path:
    """A folder with the packed file, under a name that nobody else knows."""
    folder = _new_folder(min(file.stat().st_size, MOST_ROOM))
    try:
        with told_of(folder / RECORDS):
            pack_into(folder, (file, taxonomy, images))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _new_folder(needed: int) -> Path:
    """In the cache folder, else among the temporary ones. OSError: neither has room for `needed` bytes."""
    with contextlib.suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        need_room(cache_folder(), needed)
        return Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=cache_folder()))
    need_room(Path(tempfile.gettempdir()), needed)
    return Path(tempfile.mkdtemp(prefix="safevlm-records-"))


def _kept(file: Path, made: Path, place: Path) -> RecordStore:
    """The packed file under its name, where it lies in the cache folder; of several processes at once one's is kept."""
    if made.parent != place.parent:
        return _for_now(file, made)
    try:
        made.rename(place)
    except OSError:
        known = _stored(file, place)
        if known is None:
            return _for_now(file, made)
        shutil.rmtree(made, ignore_errors=True)
        return known
    _forget(place.parent)
    return _of_folder(file, place)


def _for_now(file: Path, made: Path) -> RecordStore:
    """The packed file, until this process ends."""
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return _of_folder(file, made)


def _forget(cache: Path) -> None:
    """Takes out what nobody used for `DAYS`, and what processes left that were killed."""
    for place in cache.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - place.stat().st_mtime > DAYS * 86400:
                shutil.rmtree(place, ignore_errors=True)


def _stored(file: Path, folder: Path) -> RecordStore | None:
    """A file that was packed before; None: it was not, or something of it was lost."""
    try:
        known = _of_folder(file, folder)
        whole = [(folder / name).stat().st_size for name in (RECORDS, IMAGES)] == known.sizes()
        return known if whole else None
    except (OSError, ValueError, EOFError):
        return None


def _of_folder(file: Path, folder: Path) -> RecordStore:
    ends, facts = _column(folder / ENDS, np.dtype("i8")).reshape(-1, 2), _column(folder / ABOUT, FACTS)
    if len(ends) != len(facts):
        raise ValueError(f"{folder}: columns that do not belong together")
    return RecordStore(file, Packed(folder / RECORDS), Packed(folder / IMAGES), ends, facts)


def _column(file: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """(n,). ValueError: a part of a row; OSError."""
    if not file.stat().st_size:  # nothing can be mapped
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(file, dtype, "r"))
