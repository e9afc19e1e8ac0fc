"""Where images come from: a folder, LLaVA's JSON, parquet, webdataset tars, or a folder of those.

Every source is a list of containers that can be walked again and again in the same order, with flat memory and without
unpacking anything. What cannot be read becomes an item with an error: one broken image, or one broken archive among
thousands, must not end a run of days. Names come from strangers: none is followed out of its folder.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safevlm.data.json_rows import json_rows
from safevlm.data.unpacking import BoundedFile, group_batches

if TYPE_CHECKING:
    from tarfile import TarFile as TarArchive

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_BYTES = 512_000_000
"""Larger files are not read; no image within the limit of pixels needs so many."""

Wanted = Callable[[int], bool]
"""Whether the item at a position of its container is asked for; all others are passed over unread."""


@dataclass(frozen=True)
class Item:
    """One image of the data, not decoded yet."""

    position: int
    """Within its container."""
    path: str
    """Its stable name: `path`, `path#row`, `tar!member`, `parquet#row`."""
    record: str = ""
    """The sample it belongs to: a record's id, a tar's key, a parquet's row."""
    file: str = ""
    """Where it lies on disk; empty inside an archive."""
    data: bytes | None = None
    """Its bytes, if they had to be read while passing by."""
    error: str = ""
    """Why there is nothing to decode."""


@dataclass(frozen=True)
class Listing:
    """What a container holds, told without reading an image."""

    count: int
    digest: str


class Container(Protocol):
    """Images in a fixed order."""

    @property
    def name(self) -> str: ...

    def listing(self) -> Listing: ...

    def items(self, wanted: Wanted) -> Iterator[Item]: ...


def open_source(data: Path, images: str = "", column: str = "") -> list[Container]:
    """The containers of DATA. ValueError: nothing there, or nothing in it that can be audited."""
    if not data.exists():
        raise ValueError(f"{data}: no such file or folder; DATA is a folder, JSON, JSONL, parquet or tar")
    if data.is_file():
        return [_container(data, data.name, images, column)]
    archives = sorted(path for path in data.rglob("*") if path.is_file() and _is_archive(path))
    found: list[Container] = [_container(path, _relative(path, data), images, column) for path in archives]
    if next(walk(data), None) is not None:
        found.append(Folder(data))
    if not found:
        raise ValueError(f"{data}: no image {SUFFIXES}, no .parquet and no .tar in this folder")
    return found


@dataclass(frozen=True)
class Folder:
    """All images below a folder, by suffix. Links to folders are not followed: they may lead round in a circle."""

    root: Path
    name: str = ""

    def listing(self) -> Listing:
        return _listing(f"{path}\t{size}" for path, size in walk(self.root))

    def items(self, wanted: Wanted) -> Iterator[Item]:
        for position, (path, size) in enumerate(walk(self.root)):
            if wanted(position):
                file = os.path.abspath(self.root / path)
                yield Item(position, printable(path), file=file, error=_too_large(size))


@dataclass(frozen=True)
class RecordFile:
    """The images of LLaVA's records, JSON or JSONL; a record may have none, one or several."""

    file: Path
    images: Path
    name: str

    def listing(self) -> Listing:
        return _listing(item.path for item in self.items(lambda position: True))

    def items(self, wanted: Wanted) -> Iterator[Item]:
        position = 0
        for number, (_, row) in enumerate(json_rows(self.file)):
            for image in _images_of(row):
                if wanted(position):
                    yield self._item(position, number, row, image)
                position += 1

    def _item(self, position: int, number: int, row: Any, image: Any) -> Item:
        record = str(row.get("id", number)) if isinstance(row, dict) else str(number)
        if not isinstance(image, str) or not image:
            return Item(position, f"#{number}", record, error=f"`image` must be a path, not {image!r:.80}")
        file, error = inside(self.images, image)
        return Item(position, f"{printable(image)}#{number}", printable(record), file=file, error=error)


@dataclass(frozen=True)
class ParquetFile:
    """A column of images: {bytes, path} structs as `datasets` writes them, plain bytes, or paths."""

    file: Path
    images: Path
    name: str
    column: str = ""

    def listing(self) -> Listing:
        try:
            parquet, column = self._open()
            count = parquet.metadata.num_rows
        except _broken_parquet():
            return Listing(1, f"{self.name} broken {self.file.stat().st_size}")
        return Listing(count, f"{self.name} {column} {count} {self.file.stat().st_size}")

    def items(self, wanted: Wanted) -> Iterator[Item]:
        try:
            parquet, column = self._open()
        except _broken_parquet() as error:
            yield Item(0, self.name, error=f"not a parquet file that can be read ({_first_line(error)})")
            return
        first = 0
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if any(wanted(first + row) for row in range(count)):
                yield from self._group(parquet, column, group, first, count, wanted)
            first += count

    def _group(self, parquet: Any, column: str, group: int, first: int, count: int, wanted: Wanted) -> Iterator[Item]:
        """The wanted rows of a row group; what cannot be decompressed is an error of each row that is left."""
        position = first
        try:
            for batch in group_batches(parquet, group, [column], 64, use_threads=False):
                for value in batch.column(0):
                    if wanted(position):
                        yield self._item(position, value.as_py())
                    position += 1
        except _broken_parquet() as error:
            for left in range(position, first + count):
                if wanted(left):
                    yield Item(left, f"{self.name}#{left}", str(left), error=f"broken row ({_first_line(error)})")

    def _item(self, row: int, value: Any) -> Item:
        table = value if isinstance(value, dict) else {"path" if isinstance(value, str) else "bytes": value}
        path, data = table.get("path"), table.get("bytes")
        item = Item(row, f"{self.name}#{row}", str(row))
        if data:
            return Item(row, item.path, item.record, data=data)
        if not path:
            return Item(row, item.path, item.record, error="neither bytes nor a path in this row")
        file, error = inside(self.images, path)
        return Item(row, item.path, item.record, file=file, error=error)

    def _open(self) -> tuple[Any, str]:
        reader = arrow("parquet").ParquetFile(self.file)
        return reader, _image_column(reader.schema_arrow, self.column, self.file)


@dataclass(frozen=True)
class TarFile:
    """A webdataset shard: members that share a name up to its first dot are one sample. Read as a stream."""

    file: Path
    name: str

    def listing(self) -> Listing:
        return _listing(f"{self.name}!{name}\t{size}" for name, size, _, _ in self._members(lambda position: False))

    def items(self, wanted: Wanted) -> Iterator[Item]:
        for position, (name, size, data, error) in enumerate(self._members(wanted)):
            if wanted(position):
                shown = printable(f"{self.name}!{name}" if name else self.name)
                yield Item(position, shown, printable(key_of(name)), data=data, error=error or _too_large(size))

    def _members(self, wanted: Wanted) -> Iterator[tuple[str, int, bytes | None, str]]:
        """Name, size, bytes if wanted, error. An archive that breaks off ends with one nameless broken member."""
        import lzma
        import tarfile
        import zlib

        position = 0
        is_plain = self.file.suffix == ".tar"
        try:
            with ExitStack() as stack:
                tar = stack.enter_context(_open_tar(self.file, is_plain, stack))
                while (member := tar.next()) is not None:
                    if member.isfile() and member.name.lower().endswith(SUFFIXES):
                        reads = wanted(position) and member.size <= MAX_BYTES
                        content = tar.extractfile(member) if reads else None
                        yield member.name, member.size, content.read() if content else None, ""
                        position += 1
                    # it remembers every header; a tar of a million members would fill the memory
                    tar.members.clear()  # type: ignore[attr-defined]  # not in typeshed
                if is_plain and self.file.stat().st_size - tar.offset < tarfile.BLOCKSIZE:
                    raise tarfile.ReadError("no end mark")  # tarfile takes half a header for the end
        except (tarfile.TarError, OSError, EOFError, MemoryError, ValueError, lzma.LZMAError, zlib.error) as error:
            yield "", 0, None, f"the archive is broken from here on ({_first_line(error)})"


def walk(root: Path, below: str = "") -> Iterator[tuple[str, int]]:
    """(relative path, size) of every image below a folder, sorted; one folder's names at a time are in memory."""
    with os.scandir(root / below) as entries:
        found = sorted((entry.name, entry) for entry in entries if not entry.name.startswith("."))
    for name, entry in found:
        path = f"{below}{name}"
        if entry.is_dir(follow_symlinks=False):
            yield from walk(root, f"{path}/")
        elif name.lower().endswith(SUFFIXES) and not entry.is_dir():
            yield path, _size(entry)


def inside(folder: Path, path: str) -> tuple[str, str]:
    """(absolute path, "") of a path that stays within its folder, else ("", why not)."""
    root = os.path.abspath(folder)
    file = os.path.abspath(os.path.join(root, path))
    if "\0" in path or os.path.commonpath([root, file]) != root:
        return "", f"the path leads out of {root}; name the folder of the images with --images"
    return file, ""


def key_of(member: str) -> str:
    """webdataset's key: the member's path up to the first dot of its last part."""
    folder, slash, name = member.rpartition("/")
    return f"{folder}{slash}{name.split('.')[0]}"


def arrow(part: str = "") -> Any:
    """pyarrow, or a module of it; ImportError names the extra."""
    try:
        return importlib.import_module(f"pyarrow.{part}" if part else "pyarrow")
    except ImportError as error:
        raise ImportError("the audit needs pyarrow: pip install -e '.[analysis]'") from error


def printable(name: str) -> str:
    """A name as UTF-8; what is none is spelled out, since neither parquet nor HTML can hold it."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _open_tar(file: Path, is_plain: bool, stack: ExitStack) -> TarArchive:
    """A compressed tar is read from its start to its end, within a bound."""
    import tarfile

    if is_plain:
        return tarfile.open(file, "r:")
    packed: Any = stack.enter_context(closing(BoundedFile(file)))
    return tarfile.open(fileobj=packed, mode="r|")


def _container(path: Path, name: str, images: str, column: str) -> Container:
    folder = Path(images) if images else path.parent
    lower = path.name.lower()
    if lower.endswith(TAR_SUFFIXES):
        return TarFile(path, name)
    if lower.endswith(".parquet"):
        return ParquetFile(path, folder, name, column)
    if lower.endswith((".json", ".jsonl")):
        return RecordFile(path, folder, name)
    raise ValueError(f"{path}: unknown kind of data; a folder, .json, .jsonl, .parquet, {', '.join(TAR_SUFFIXES)}")


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith((*TAR_SUFFIXES, ".parquet"))


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nowhere; opening it will say so
        return 0


def _listing(lines: Iterator[str]) -> Listing:
    digest, count = hashlib.sha256(), 0
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
        count += 1
    return Listing(count, digest.hexdigest())


def _too_large(size: int) -> str:
    return f"{size:,} bytes are over the limit of {MAX_BYTES:,}" if size > MAX_BYTES else ""


def _images_of(row: Any) -> list[Any]:
    image = row.get("image") if isinstance(row, dict) else None
    return [] if image is None else image if isinstance(image, list) else [image]


def _image_column(schema: Any, wanted: str, file: Path) -> str:
    """The column that holds images: the named one, or the first that looks like it."""
    pa = arrow()
    kinds: dict[str, Callable[[Any], bool]] = {
        "struct": lambda kind: pa.types.is_struct(kind) and any(one.name in ("bytes", "path") for one in kind),
        "binary": lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
        "text": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    }
    columns = {one.name: kind for one in schema for kind, fits in kinds.items() if fits(one.type)}
    if wanted:
        if wanted not in columns:
            raise ValueError(f"{file}: --column {wanted}: no such column of images; one of {sorted(columns)}")
        return wanted
    for kind in ("struct", "binary"):
        named = [name for name, found in columns.items() if found == kind]
        if named:
            return named[0]
    paths = [name for name, found in columns.items() if found == "text" and name in PATH_COLUMNS]
    if not paths:
        raise ValueError(f"{file}: no column of images among {schema.names}; name one with --column")
    return paths[0]


PATH_COLUMNS = ("image", "image_path", "path", "file", "file_name", "filename")
"""Columns of text that are taken for paths without being named."""


def _broken_parquet() -> tuple[type[BaseException], ...]:
    pa = arrow()
    return (pa.ArrowException, OSError)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
