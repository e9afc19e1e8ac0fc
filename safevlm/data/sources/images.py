"""Where images are, by the names that rows call them; and their bytes, out of files, zips and parquet.

Downloads disagree with themselves about case, extensions and folders, so a name is looked up by its base name, without
regard to case, white space and extension; among several, the one whose folders fit better is meant. A name that then
still fits several files is an error, never a guess. Nothing is ever written under a name that an archive brings.
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

from safevlm.data.sources.row import ImageFile, SourceError
from safevlm.data.unpacking import UnpackingError, group_batches

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MAX_BYTES = 256_000_000
"""Largest image inside an archive; more is a zip bomb or no image."""


STEP = 4_096
"""Packed bytes that are unpacked at once."""
BROKEN_ZIP = (
    OSError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    RuntimeError,  # a password
    ValueError,
    lzma.LZMAError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What a damaged zip raises, of which the module documents one."""


class ImageIndex:
    """All images below folders and in zips."""

    def __init__(self, places: Iterable[Path]) -> None:
        self._by_base: defaultdict[str, list[tuple[str, ImageFile]]] = defaultdict(list)
        for name, image in (pair for place in places for pair in _images(place)):
            self._by_base[_loose(PurePosixPath(name).name)].append((name, image))

    def __iter__(self) -> Iterator[ImageFile]:
        return (image for pairs in self._by_base.values() for _, image in pairs)

    def find(self, name: str, place: str) -> ImageFile | None:
        """The image of that name, or None; SourceError when several fit."""
        name = name.replace("\\", "/").removeprefix("./")
        found = self._by_base.get(_loose(PurePosixPath(name).name), [])
        for fits in (_ends_with(name), _ends_loosely_with(name), _ends_with(PurePosixPath(name).name)):
            found = [pair for pair in found if fits(pair[0])] or found
        if len(found) > 1:
            places = ", ".join(str(image) for _, image in found[:3])
            raise SourceError(f"{place}: image {name!r} fits several files: {places}")
        return found[0][1] if found else None


def _ends_with(name: str) -> Callable[[str], bool]:
    return lambda other: f"/{other}".endswith(f"/{name}")


def _ends_loosely_with(name: str) -> Callable[[str], bool]:
    return lambda other: f"/{_loose(other)}".endswith(f"/{_loose(name)}")


def find_all(index: ImageIndex, names: Iterable[str], place: str) -> tuple[tuple[ImageFile, ...], tuple[str, ...]]:
    """Images that were found, and the names of those that were not."""
    pairs = [(name, index.find(name, place)) for name in names]
    return (
        tuple(image for _, image in pairs if image is not None),
        tuple(name for name, image in pairs if image is None),
    )


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())


def read_images(
    images: Iterable[ImageFile], on_empty: Callable[[ImageFile], object] | None = None
) -> Iterator[tuple[ImageFile, bytes]]:
    """Bytes of every image once; an archive is opened once, whatever the order.

    `on_empty` hears of a row of parquet without image bytes, which is then left out; without it such a row is an error.
    """
    by_file: defaultdict[str, set[str]] = defaultdict(set)
    for image in images:
        by_file[image.file].add(image.member)
    for path in sorted(map(Path, by_file)):
        members = sorted(by_file[str(path)])
        if members == [""]:
            yield ImageFile(path), _file_bytes(path)
        elif path.suffix == ".parquet":
            yield from _parquet_bytes(path, {int(member) for member in members}, on_empty)
        else:
            yield from _zip_bytes(path, members)


class EmptyCells:
    """Which rows of parquet files hold no image bytes."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}

    def among(self, images: Iterable[ImageFile]) -> tuple[str, ...]:
        """The places of those that are empty."""
        return tuple([f"{image} holds no image" for image in images if image.member and self._is_empty(image)])

    def _is_empty(self, image: ImageFile) -> bool:
        if not image.file.endswith(".parquet"):
            return False
        if image.file not in self._known:
            self._known[image.file] = set(_empty_rows(image.path))
        return image.member in self._known[image.file]


def _empty_rows(path: Path) -> Iterator[str]:
    start, file = 0, parquet_file(path)
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if _may_be_empty(file.metadata.row_group(group)):
            cells = _cells(path, file, group, start, set(range(start, start + size)))
            yield from (image.member for image, cell in cells if _content(cell) is None)
        start += size


def _may_be_empty(group: Any) -> bool:
    """Whether a row group's statistics leave room for a cell without bytes, so that its images must be read to know."""
    columns = [group.column(index) for index in range(group.num_columns)]
    told = [one.statistics for one in columns if one.path_in_schema in ("image", "image.bytes")]
    return any(
        one is None or not one.has_null_count or one.null_count > 0 or (one.has_min_max and not one.min) for one in told
    )


def _images(place: Path) -> Iterator[tuple[str, ImageFile]]:
    if place.is_dir():
        for path in image_files(place):
            yield path.relative_to(place).as_posix(), ImageFile(path)
        return
    with _zip(place) as archive:
        for member in sorted(archive.namelist()):
            if PurePosixPath(member).suffix.lower() in EXTENSIONS and "__MACOSX" not in member:
                yield member.replace("\\", "/"), ImageFile(place, member)


def _loose(name: str) -> str:
    """Without regard to case, white space, Unicode form and an image's extension."""
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
    except BROKEN_ZIP as error:
        raise SourceError(f"{path}: not a zip file that can be read ({error}); download it again") from error


def _zip_bytes(path: Path, members: Iterable[str]) -> Iterator[tuple[ImageFile, bytes]]:
    with _zip(path) as archive:
        for member in members:
            yield ImageFile(path, member), _member_bytes(archive, path, member)


def _member_bytes(archive: zipfile.ZipFile, path: Path, member: str) -> bytes:
    """In steps: some methods unpack whatever they are given at once, whatever size the member is said to have."""
    try:
        if archive.getinfo(member).file_size > MAX_BYTES:
            raise SourceError(f"{path}:{member}: over the limit of {MAX_BYTES:,} bytes for one image")
        with archive.open(member) as file:
            return b"".join(iter(lambda: file.read(STEP), b""))
    except SourceError:
        raise
    except BROKEN_ZIP as error:
        raise SourceError(
            f"{path}:{member}: cannot be unpacked ({_one_line(error)}); download {path.name} again"
        ) from error


def _parquet_bytes(
    path: Path, rows: set[int], on_empty: Callable[[ImageFile], object] | None
) -> Iterator[tuple[ImageFile, bytes]]:
    start = 0
    file = parquet_file(path)
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        wanted = {row for row in rows if start <= row < start + size}
        for image, cell in _cells(path, file, group, start, wanted) if wanted else ():
            if on_empty is not None and _content(cell) is None:
                on_empty(image)
            else:
                yield image, _cell_bytes(cell, str(image))
        start += size


def _cells(path: Path, file: Any, group: int, start: int, wanted: set[int]) -> Iterator[tuple[ImageFile, object]]:
    row = start
    for batch in batches(file, path, [group], ["image"], 32):
        for cell in batch.column(0):
            if row in wanted:
                yield ImageFile(path, str(row)), cell.as_py()
            row += 1


def batches(file: Any, path: Path, groups: Iterable[int], columns: list[str], size: int) -> Iterator[Any]:
    """Columns of row groups of a `parquet_file`, `size` rows at a time or fewer.

    SourceError: damaged, or it unpacks too far.
    """
    from pyarrow import ArrowException

    for group in groups:
        try:
            yield from group_batches(file, group, columns, size)
        except UnpackingError as error:
            raise SourceError(f"{path}: {error}") from error
        except (ArrowException, OSError) as error:
            raise SourceError(
                f"{path}: row group {group} cannot be read ({_one_line(error)}); download {path.name} again"
            ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _content(cell: object) -> object:
    """Of a Hugging Face image cell: `{bytes, path}`, or the bytes themselves; None: there are none."""
    return (cell.get("bytes") if isinstance(cell, dict) else cell) or None


def _cell_bytes(cell: object, place: str) -> bytes:
    data = _content(cell)
    if not isinstance(data, bytes) or len(data) > MAX_BYTES:
        raise SourceError(f"{place}: column `image` holds no image bytes; download the parquet with its images")
    return data


def parquet_file(path: Path) -> Any:
    """A parquet file to read; needs pyarrow."""
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise ImportError("reading parquet needs pyarrow: pip install -e '.[data]'") from error
    try:
        return parquet.ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise SourceError(f"{path}: not a parquet file that can be read: {error}") from error
