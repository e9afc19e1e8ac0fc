"""Where pictures are, by the names that rows call them; and their bytes, out of files, zips and parquet.

Downloads disagree with themselves about case, extensions and folders, so a name is looked up by its base name, without
regard to case, white space and extension; among several, the one whose folders fit better is meant. A name that then
still fits several files is an error, never a guess. Nothing is ever written under a name that an archive brings.
"""

from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from safevlm.data.sources.row import Picture, SourceError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MAX_BYTES = 256_000_000
"""Largest picture inside an archive; more is a zip bomb or no picture."""


class PictureIndex:
    """All pictures below folders and in zips."""

    def __init__(self, places: Iterable[Path]) -> None:
        self._by_base: defaultdict[str, list[tuple[str, Picture]]] = defaultdict(list)
        for name, picture in (pair for place in places for pair in _pictures(place)):
            self._by_base[_loose(PurePosixPath(name).name)].append((name, picture))

    def __iter__(self) -> Iterator[Picture]:
        return (picture for pairs in self._by_base.values() for _, picture in pairs)

    def find(self, name: str, place: str) -> Picture | None:
        """The picture of that name, or None; SourceError when several fit."""
        name = name.replace("\\", "/").removeprefix("./")
        found = self._by_base.get(_loose(PurePosixPath(name).name), [])
        for fits in (_ends_with(name), _ends_loosely_with(name), _ends_with(PurePosixPath(name).name)):
            found = [pair for pair in found if fits(pair[0])] or found
        if len(found) > 1:
            places = ", ".join(str(picture) for _, picture in found[:3])
            raise SourceError(f"{place}: picture {name!r} fits several files: {places}")
        return found[0][1] if found else None


def _ends_with(name: str) -> Callable[[str], bool]:
    return lambda other: f"/{other}".endswith(f"/{name}")


def _ends_loosely_with(name: str) -> Callable[[str], bool]:
    return lambda other: f"/{_loose(other)}".endswith(f"/{_loose(name)}")


def find_all(index: PictureIndex, names: Iterable[str], place: str) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """Pictures that were found, and the names of those that were not."""
    pairs = [(name, index.find(name, place)) for name in names]
    return (
        tuple(picture for _, picture in pairs if picture is not None),
        tuple(name for name, picture in pairs if picture is None),
    )


def picture_files(folder: Path) -> list[Path]:
    """All picture files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())


def read_pictures(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, bytes]]:
    """Bytes of every picture once; an archive is opened once, whatever the order."""
    by_path: defaultdict[Path, set[str]] = defaultdict(set)
    for picture in pictures:
        by_path[picture.path].add(picture.member)
    for path in sorted(by_path):
        members = sorted(by_path[path])
        if members == [""]:
            yield Picture(path), _file_bytes(path)
        elif path.suffix == ".parquet":
            yield from _parquet_bytes(path, {int(member) for member in members})
        else:
            yield from _zip_bytes(path, members)


def _pictures(place: Path) -> Iterator[tuple[str, Picture]]:
    if place.is_dir():
        for path in picture_files(place):
            yield path.relative_to(place).as_posix(), Picture(path)
        return
    with _zip(place) as archive:
        for member in sorted(archive.namelist()):
            if PurePosixPath(member).suffix.lower() in EXTENSIONS and "__MACOSX" not in member:
                yield member.replace("\\", "/"), Picture(place, member)


def _loose(name: str) -> str:
    """Without regard to case, white space, Unicode form and a picture's extension."""
    path = PurePosixPath(name)
    bare = str(path.with_suffix("")) if path.suffix.lower() in EXTENSIONS else name
    return "".join(normalize("NFC", bare).casefold().split())


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error


def _zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path}: not a zip file that can be read ({error}); download it again") from error


def _zip_bytes(path: Path, members: Iterable[str]) -> Iterator[tuple[Picture, bytes]]:
    with _zip(path) as archive:
        for member in members:
            yield Picture(path, member), _member_bytes(archive, path, member)


def _member_bytes(archive: zipfile.ZipFile, path: Path, member: str) -> bytes:
    if archive.getinfo(member).file_size > MAX_BYTES:
        raise SourceError(f"{path}:{member}: over the limit of {MAX_BYTES:,} bytes for one picture")
    try:
        return archive.read(member)
    except (RuntimeError, NotImplementedError, zipfile.BadZipFile, OSError) as error:  # RuntimeError: a password
        raise SourceError(f"{path}:{member}: cannot be unpacked: {error}") from error


def _parquet_bytes(path: Path, rows: set[int]) -> Iterator[tuple[Picture, bytes]]:
    start = 0
    file = parquet_file(path)
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        wanted = {row for row in rows if start <= row < start + size}
        yield from _group_bytes(path, file, group, start, wanted) if wanted else ()
        start += size


def _group_bytes(path: Path, file, group: int, start: int, wanted: set[int]) -> Iterator[tuple[Picture, bytes]]:
    row = start
    for batch in file.iter_batches(batch_size=32, row_groups=[group], columns=["image"]):
        for cell in batch.column(0):
            if row in wanted:
                yield Picture(path, str(row)), _cell_bytes(cell.as_py(), f"{path}:{row}")
            row += 1


def _cell_bytes(cell: object, place: str) -> bytes:
    """A Hugging Face image cell: `{bytes, path}`, or the bytes themselves."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes) or len(data) > MAX_BYTES:
        raise SourceError(f"{place}: column `image` holds no picture bytes; download the parquet with its pictures")
    return data


def parquet_file(path: Path):
    """A parquet file to read; needs pyarrow."""
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise ImportError("reading parquet needs pyarrow: pip install 'safevlm[data]'") from error
    try:
        return parquet.ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise SourceError(f"{path}: not a parquet file that can be read: {error}") from error
