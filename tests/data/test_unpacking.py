"""Archives that are damaged, or that unpack to far more than they are: one line that names archive, member and fix."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safevlm.analysis.audit.plan import make_plan
from safevlm.analysis.audit.sources import open_source
from safevlm.data import unpacking
from safevlm.data.json_rows import RowError
from safevlm.data.record_rows import record_rows
from safevlm.data.sources.images import ImageFile, read_images
from safevlm.data.sources.row import SourceError
from safevlm.data.unpacking import UnpackingError, check_columns, group_batches, most_unpacked
from safevlm.evaluation.suites import images as suite_images
from tests.data import downloads


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> int:
    """A bound of 1 MB beyond twenty times the packed size, so that small files show what large ones do."""
    monkeypatch.setattr(unpacking, "MOST_UNPACKED", 1_000_000)
    return 1_000_000


def _audited(path: Path) -> list[Any]:
    return [placed.item for placed in make_plan(open_source(path), size=99).items({0})]


# zip


def _damaged(path: Path, member: str, method: int) -> Path:
    """A zip of two noisy images, of which one has wrong bytes in its middle."""
    good = downloads.png(1)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("good.png", good)
        archive.writestr(member, bytes(range(256)) * 40)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        start = info.header_offset + 30 + len(member)
        for at in range(start + 8, start + min(60, info.compress_size)):
            data[at] ^= 0xFF
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_of_a_zip_names_archive_member_and_fix(tmp_path: Path, method: int) -> None:
    path = _damaged(tmp_path / "img.zip", "a/bad.png", method)
    assert dict(read_images([ImageFile(path, "good.png")]))[ImageFile(path, "good.png")] == downloads.png(1)
    with pytest.raises(
        SourceError, match=r"img\.zip:a/bad\.png: cannot be unpacked .*download img\.zip again"
    ) as error:
        list(read_images([ImageFile(path, "a/bad.png")]))
    assert "\n" not in str(error.value)


def test_a_member_larger_than_it_says_is_damaged_and_costs_no_memory(tmp_path: Path) -> None:
    """LZMA unpacks all that it is given at once: 200 MB out of 30 kB, of which the header admits ten bytes."""
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("bomb.png", bytes(1_000_000))
    data = path.read_bytes()
    size = (1_000_000).to_bytes(4, "little")
    assert data.count(size) == 2
    path.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(SourceError, match=r"bomb\.zip:bomb\.png"):
        list(read_images([ImageFile(path, "bomb.png")]))


# tar


def _tar(path: Path, size: int) -> Path:
    """Two images, and between them a member of zeros."""
    mode = "w:gz" if path.suffix == ".gz" else "w"
    with tarfile.open(path, mode) as archive:
        for name, data in (("1.png", downloads.png(1)), ("zeros.bin", bytes(size)), ("2.png", downloads.png(2))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_gzip_bomb_is_told_and_ends_the_archive(tmp_path: Path, tight: int) -> None:
    items = _audited(_tar(tmp_path / "data.tar.gz", 3 * tight))
    assert [bool(item.error) for item in items] == [False, True]
    assert "unpacks to more than" in items[-1].error
    assert len(_audited(_tar(tmp_path / "fine.tar.gz", tight // 2))) == 2


def test_a_bomb_without_a_member_ends_too(tmp_path: Path, tight: int) -> None:
    """A header that never ends: an extended one of as many bytes as the file unpacks to."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 8**11 - 1
    (tmp_path / "data.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(5 * tight)))
    [item] = _audited(tmp_path / "data.tar.gz")
    assert "unpacks to more than" in item.error


@pytest.mark.parametrize("kept", [0.3, 0.6])
def test_a_damaged_tar_of_a_suite_names_archive_and_fix(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(20):
            info = tarfile.TarInfo(f"{number}.png")
            data = downloads.png(number)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    wanted = list(suite_images.tar_members(path).values())
    assert len(suite_images.on_disk(wanted, tmp_path)) == 20
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept) // 512 * 512 + 100])
    with pytest.raises(ValueError, match=r"images\.tar.*download images\.tar again"):
        suite_images.on_disk(wanted, tmp_path)


def test_a_suite_reads_no_compressed_tar(tmp_path: Path) -> None:
    (tmp_path / "images.tar").write_bytes(zlib.compress(b"x" * 1000))
    with pytest.raises(ValueError, match=r"images\.tar: not a tar file.*download images\.tar again"):
        suite_images.tar_members(tmp_path / "images.tar")


# parquet


@pytest.fixture
def bomb(tmp_path: Path, tight: int) -> Path:
    path = tmp_path / "data.parquet"
    rows = {"image": [{"bytes": bytes(2 * tight), "path": ""}], "question": ["What?"], "messages": ["x" * 2 * tight]}
    pq.write_table(pa.table(rows), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 10_000
    return path


def test_a_parquet_bomb_is_refused_before_it_is_read(bomb: Path) -> None:
    told = "unpacks from .* smaller row groups"
    [item] = _audited(bomb)
    assert "row group 0 unpacks from" in item.error
    with pytest.raises(SourceError, match=rf"data\.parquet: row group 0 {told}"):
        list(read_images([ImageFile(bomb, "0")]))
    with pytest.raises(SourceError, match=rf"data\.parquet: row group 0 {told}"):
        list(suite_images.text_rows(bomb))
    with pytest.raises(RowError, match=rf"data\.parquet: .*{told}"):
        list(record_rows(bomb))


def test_a_text_that_stands_once_and_is_the_value_of_every_row_is_read_a_few_rows_at_a_time(
    tmp_path: Path, tight: int
) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"x" * (tight // 5)] * 64}), file, compression="zstd")
    assert file.stat().st_size < tight // 100
    batches = list(group_batches(pq.ParquetFile(file), 0, ["image"], 64))
    assert sum(batch.num_rows for batch in batches) == 64
    assert max(batch.nbytes for batch in batches) <= tight // 4
    assert len(list(record_rows(file))) == len(_audited(file)) == 64


def test_only_the_columns_that_are_read_count(tmp_path: Path, tight: int) -> None:
    rows = {"text": ["a"], "other": ["x" * 3 * tight]}
    pq.write_table(pa.table(rows), tmp_path / "x.parquet", compression="zstd", use_dictionary=False)
    file = pq.ParquetFile(tmp_path / "x.parquet")
    check_columns(file, 0, ["text"])
    with pytest.raises(UnpackingError):
        check_columns(file, 0, ["text", "other"])


@pytest.mark.parametrize(("packed", "unpacked"), [(0, 512_000_000), (1_000_000_000, 20_512_000_000)])
def test_what_images_shrink_to_is_never_refused(packed: int, unpacked: int) -> None:
    assert most_unpacked(packed) == unpacked
    column = SimpleNamespace(
        path_in_schema="image.bytes", total_compressed_size=packed, total_uncompressed_size=unpacked
    )
    group = SimpleNamespace(num_columns=1, column=lambda index: column)
    file = SimpleNamespace(metadata=SimpleNamespace(row_group=lambda index: group))
    check_columns(file, 0, ["image"])
    column.total_uncompressed_size += 1
    with pytest.raises(UnpackingError):
        check_columns(file, 0, ["image"])
