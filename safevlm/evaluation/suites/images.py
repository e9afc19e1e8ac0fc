"""Images of a suite as files: those in zips, tars and parquet are unpacked once, below `FOLDER/.safevlm`.

The readers of training data know the layouts (`safevlm.data.sources`); they load torch, so they are imported late and
only here. Nothing is written under a name that an archive brings, and a changed archive is unpacked anew.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from safevlm.data.atomic_write import atomic_file
from safevlm.data.images import image_format
from safevlm.evaluation.suites.tables import AbsentError, csv_rows

if TYPE_CHECKING:
    from safevlm.data.sources.images import ImageIndex
    from safevlm.data.sources.row import ImageFile, SourceRow

CACHE = ".safevlm"
BAR_FROM = 50  # images; fewer are unpacked at once


def images_in(folder: Path, *places: str) -> ImageIndex:
    """Images in the first of these places (folders or zips below the suite's folder) that is there; else none."""
    from safevlm.data.sources.images import ImageIndex

    found = [folder / place for place in places if (folder / place).exists()]
    return ImageIndex(found[:1])


def find(index: ImageIndex, names: Iterable[str], place: str) -> tuple[tuple[ImageFile, ...], tuple[str, ...]]:
    """Images that were found, and the names of those that were not; a name that fits several is an error."""
    from safevlm.data.sources.images import find_all

    return find_all(index, names, place)


def tar_members(file: Path) -> dict[str, ImageFile]:
    """Base name → image of a tar, which is read from its start to its end once."""
    from safevlm.data.sources.row import ImageFile

    with _tar(file) as archive:
        names = [member.name for member in archive if member.isfile()]
    return {PurePosixPath(name).name: ImageFile(file, name) for name in names}


def parquet_rows(file: Path, needed: Collection[str]) -> Iterator[tuple[str, tuple[dict[str, object], ImageFile]]]:
    """(place, (row without its image, the image)) of a parquet file; AbsentError: it is another benchmark's."""
    from safevlm.data.sources.images import parquet_file
    from safevlm.data.sources.row import ImageFile

    names = parquet_file(file).schema_arrow.names
    lacking = sorted({*needed, "image"} - set(names))
    if lacking:
        raise AbsentError(f"{file} has columns {names}, without {lacking}")
    for number, (place, row) in enumerate(text_rows(file)):
        yield place, (row, ImageFile(file, str(number)))


def text_rows(file: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """(place, row) of a parquet file, its images left alone."""
    from safevlm.data.sources.images import batches, parquet_file

    table = parquet_file(file)
    columns = [name for name in table.schema_arrow.names if name != "image"]
    found = batches(table, file, range(table.num_row_groups), columns, 1024)
    rows = (row for batch in found for row in batch.to_pylist())
    yield from ((f"{file}:{number}", row) for number, row in enumerate(rows))


def columns_of(file: Path) -> list[str]:
    """Names of a parquet file's columns."""
    from safevlm.data.sources.images import parquet_file

    return list(parquet_file(file).schema_arrow.names)


def table_rows(file: Path, needed: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of a table of texts, CSV or parquet.

    ValueError: a column of the CSV is missing; AbsentError: the parquet file is another benchmark's.
    """
    if file.suffix != ".parquet":
        return csv_rows(file, needed)
    lacking = sorted(set(needed) - set(columns_of(file)))
    if lacking:
        raise AbsentError(f"{file} has columns {columns_of(file)}, without {lacking}")
    return text_rows(file)


def source_rows(
    kind: str,
    folder: Path,
    split: str,
    split_file: Path | None = None,
    on_broken: Callable[[str, str], object] | None = None,
) -> list[SourceRow]:
    """Rows of a source that training reads too, with whatever is there; the suite counts them itself.

    `on_broken(place, why)` hears of rows that cannot be read; without it such a row is an error.
    """
    from safevlm.data.sources import read_source
    from safevlm.data.sources.row import SourceSpec

    spec = SourceSpec(
        name=kind,
        kind=kind,
        path=folder,
        split=split,
        split_file=split_file,
        partial="allow",
        missing_images="allow",
        on_broken=on_broken,
    )
    return list(read_source(spec))


def on_disk(images: Collection[ImageFile | Path], folder: Path) -> dict[ImageFile | Path, Path]:
    """Image → file, unpacked if need be; a path is its own file. A row of parquet without image bytes has none."""
    files: dict[ImageFile | Path, Path] = {image: image for image in images if isinstance(image, Path)}
    others = [image for image in images if not isinstance(image, Path)]
    files |= {image: image.path for image in others if not image.member}
    packed = [image for image in others if image.member]
    known = {path: _unpacked(_cache(folder, path)) for path in {image.path for image in packed}}
    for image in packed:
        if file := known[image.path].get(_stem(image)):
            files[image] = file
    waiting = [image for image in packed if image not in files]
    return files | dict(_unpack(waiting, folder)) if waiting else files


def _unpack(images: Collection[ImageFile], folder: Path) -> Iterator[tuple[ImageFile, Path]]:
    count = len(images)
    bar = tqdm(_bytes_of(images), desc="unpacking images", total=count, disable=count < BAR_FROM)
    for image, data in bar:
        place = _cache(folder, image.path)
        try:
            place.mkdir(parents=True, exist_ok=True)
            yield image, _write(place / f"{_stem(image)}{_ending(data, image)}", data)
        except OSError as error:
            raise ValueError(f"{place}: images of {image.path} cannot be unpacked here ({error})") from error


def _bytes_of(images: Collection[ImageFile]) -> Iterator[tuple[ImageFile, bytes]]:
    from safevlm.data.sources.images import MAX_BYTES, read_images

    # a row without bytes has no file, and its question is told as one that lacks its image
    yield from read_images((image for image in images if image.path.suffix != ".tar"), on_empty=lambda image: None)
    by_member = {(image.path, image.member): image for image in images if image.path.suffix == ".tar"}
    for path in sorted({path for path, _ in by_member}):  # the set is made once; members leave it one by one
        with _tar(path) as archive:
            for member in archive:
                wanted = by_member.get((path, member.name))
                content = archive.extractfile(member) if wanted and member.size <= MAX_BYTES else None
                if wanted and content:
                    del by_member[path, member.name]
                    yield wanted, content.read()
    if by_member:
        gone = next(iter(by_member.values()))
        raise ValueError(f"{gone}: cannot be unpacked, cut off or too large; download {gone.path.name} again")


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar without compression, as the benchmarks publish theirs. ValueError: damaged, with the fix."""
    try:
        with tarfile.open(path, "r:") as archive:
            yield archive
    except (tarfile.TarError, OSError, EOFError, MemoryError) as error:
        raise ValueError(
            f"{path}: not a tar file that can be read ({error or 'it breaks off'}); download {path.name} again"
        ) from error


def _write(file: Path, data: bytes) -> Path:
    """Whole or not at all, also when several processes unpack at once."""
    with atomic_file(file) as partial:
        partial.write_bytes(data)
    return file


def _unpacked(place: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(place.glob("*")) if file.name[0] != "."}


def _cache(folder: Path, archive: Path) -> Path:
    """One folder per archive and state of it."""
    state = archive.stat()
    name = f"{archive.resolve()}:{state.st_size}:{state.st_mtime_ns}"
    return folder / CACHE / f"{archive.stem}-{_digest(name)}"


def _stem(image: ImageFile) -> str:
    """The same wherever the archive lies, since a run's digest has it."""
    return _digest(f"{image.path.name}:{image.member}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _ending(data: bytes, image: ImageFile) -> str:
    """By content, since rows of parquet have no name. ValueError: no image."""
    if kind := image_format(data):
        return f".{kind.lower()}"
    raise ValueError(f"{image}: not an image that can be read; download the archive again")
