"""Pictures of a suite as files: those in zips, tars and parquet are unpacked once, below `FOLDER/.safevlm`.

The readers of training data know the layouts (`safevlm.data.sources`); they load torch, so they are imported late and
only here. Nothing is written under a name that an archive brings, and a changed archive is unpacked anew.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Collection, Iterable, Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tqdm import tqdm

from eval.suites.tables import AbsentError

if TYPE_CHECKING:
    from safevlm.data.sources.pictures import PictureIndex
    from safevlm.data.sources.row import Picture, SourceRow

CACHE = ".safevlm"
BAR_FROM = 50  # pictures; fewer are unpacked at once


def pictures_in(folder: Path, *places: str) -> PictureIndex:
    """Pictures in the first of these places (folders or zips below the suite's folder) that is there; else none."""
    from safevlm.data.sources.pictures import PictureIndex

    found = [folder / place for place in places if (folder / place).exists()]
    return PictureIndex(found[:1])


def find(index: PictureIndex, names: Iterable[str], place: str) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """Pictures that were found, and the names of those that were not; a name that fits several is an error."""
    from safevlm.data.sources.pictures import find_all

    return find_all(index, names, place)


def tar_members(file: Path) -> dict[str, Picture]:
    """Base name → picture of a tar, which is read from its start to its end once."""
    from safevlm.data.sources.row import Picture

    with tarfile.open(file) as archive:
        names = [member.name for member in archive if member.isfile()]
    return {PurePosixPath(name).name: Picture(file, name) for name in names}


def parquet_rows(file: Path, needed: Collection[str]) -> Iterator[tuple[str, dict[str, object], Picture]]:
    """(place, row without its picture, the picture) of a parquet file; AbsentError: it is another benchmark's."""
    from safevlm.data.sources.pictures import parquet_file
    from safevlm.data.sources.row import Picture

    names = parquet_file(file).schema_arrow.names
    lacking = sorted({*needed, "image"} - set(names))
    if lacking:
        raise AbsentError(f"{file} has columns {names}, without {lacking}")
    for number, (place, row) in enumerate(text_rows(file)):
        yield place, row, Picture(file, str(number))


def text_rows(file: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """(place, row) of a parquet file, its pictures left alone."""
    from safevlm.data.sources.pictures import parquet_file

    table = parquet_file(file)
    columns = [name for name in table.schema_arrow.names if name != "image"]
    rows = (row for batch in table.iter_batches(batch_size=1024, columns=columns) for row in batch.to_pylist())
    yield from ((f"{file}:{number}", row) for number, row in enumerate(rows))


def source_rows(kind: str, folder: Path, split: str, split_file: Path | None = None) -> list[SourceRow]:
    """Rows of a source that training reads too, with whatever is there; the suite counts them itself."""
    from safevlm.data.sources import read_source
    from safevlm.data.sources.row import SourceSpec

    spec = SourceSpec(
        name=kind, kind=kind, path=folder, split=split, split_file=split_file, partial="allow", missing_images="allow"
    )
    return list(read_source(spec))


def on_disk(pictures: Collection[Picture | Path], folder: Path) -> dict[Picture | Path, Path]:
    """Picture → file, unpacked if need be; a path is its own file."""
    files: dict[Picture | Path, Path] = {picture: picture for picture in pictures if isinstance(picture, Path)}
    others = [picture for picture in pictures if not isinstance(picture, Path)]
    files |= {picture: picture.path for picture in others if not picture.member}
    packed = [picture for picture in others if picture.member]
    known = {path: _unpacked(_cache(folder, path)) for path in {picture.path for picture in packed}}
    for picture in packed:
        if file := known[picture.path].get(_stem(picture)):
            files[picture] = file
    waiting = [picture for picture in packed if picture not in files]
    return files | dict(_unpack(waiting, folder)) if waiting else files


def _unpack(pictures: Collection[Picture], folder: Path) -> Iterator[tuple[Picture, Path]]:
    count = len(pictures)
    bar = tqdm(_bytes_of(pictures), desc="unpacking pictures", total=count, disable=count < BAR_FROM)
    for picture, data in bar:
        place = _cache(folder, picture.path)
        try:
            place.mkdir(parents=True, exist_ok=True)
            yield picture, _write(place / f"{_stem(picture)}{_ending(data, picture)}", data)
        except OSError as error:
            raise ValueError(f"{place}: pictures of {picture.path} cannot be unpacked here ({error})") from error


def _bytes_of(pictures: Collection[Picture]) -> Iterator[tuple[Picture, bytes]]:
    from safevlm.data.sources.pictures import MAX_BYTES, read_pictures

    yield from read_pictures(picture for picture in pictures if picture.path.suffix != ".tar")
    by_member = {(picture.path, picture.member): picture for picture in pictures if picture.path.suffix == ".tar"}
    for path in sorted({path for path, _ in by_member}):
        with tarfile.open(path) as archive:
            for member in archive:
                wanted = by_member.get((path, member.name))
                content = archive.extractfile(member) if wanted and member.size <= MAX_BYTES else None
                if wanted and content:
                    yield wanted, content.read()


def _write(file: Path, data: bytes) -> Path:
    """Whole or not at all, also when several processes unpack at once."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, file)
    return file


def _unpacked(place: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(place.glob("*")) if file.suffix != ".part"}


def _cache(folder: Path, archive: Path) -> Path:
    """One folder per archive and state of it."""
    state = archive.stat()
    name = f"{archive.resolve()}:{state.st_size}:{state.st_mtime_ns}"
    return folder / CACHE / f"{archive.stem}-{_digest(name)}"


def _stem(picture: Picture) -> str:
    """The same wherever the archive lies, since a run's digest has it."""
    return _digest(f"{picture.path.name}:{picture.member}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _ending(data: bytes, picture: Picture) -> str:
    """By content, since rows of parquet have no name. ValueError: no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(data)) as image:
            return f".{str(image.format).lower()}"
    except UnidentifiedImageError as error:
        raise ValueError(f"{picture}: not a picture that can be read; download the archive again") from error
