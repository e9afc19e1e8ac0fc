"""Files appear whole or not at all, readable as the umask says; a disk that does not take them is one true line."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safevlm.data import atomic_write
from safevlm.data.atomic_write import WriteError, atomic_file, atomic_folder
from safevlm.data.row_log import append_rows
from tests.training import workshop

ROOT = Path(__file__).parents[2]
LARGE = torch.zeros(1 << 20)
"""4 MiB."""


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_and_folders_have_the_umasks_rights_whoever_wrote_them(tmp_path: Path, umask: int) -> None:
    """safetensors writes for the owner alone; others were then told that there is no such file."""
    with atomic_file(tmp_path / "single.safetensors") as partial:
        save_file({"a": torch.ones(2)}, partial)
    with atomic_folder(tmp_path / "folder") as folder:
        save_file({"a": torch.ones(2)}, folder / "weights.safetensors")
        (folder / "closed").mkdir(mode=0o700)
        (folder / "closed" / "file").touch(mode=0o600)
    assert atomic_write.write_new(tmp_path / "new.json", "{}")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 4 and {_mode(file) for file in files} == {0o666 & ~umask}
    assert {_mode(tmp_path / name) for name in ("folder", "folder/closed")} == {0o777 & ~umask}


def _torch(folder: Path) -> None:
    torch.save({"a": LARGE}, folder / "optimizer.pt")


def _safetensors(folder: Path) -> None:
    save_file({"a": LARGE}, folder / "weights.safetensors")


def _text(folder: Path) -> None:
    (folder / "text").write_text("x" * (4 << 20))


def _tokenizer(folder: Path) -> None:
    workshop.tokenizer().save_pretrained(folder)


WRITERS: dict[str, Callable[[Path], None]] = {
    "torch": _torch,
    "safetensors": _safetensors,
    "text": _text,
    "tokenizer": _tokenizer,
}


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system takes no file above 4 KiB, as a full disk would not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_library_fails_to_write_it_is_one_line_with_the_place_and_nothing_is_left(
    tmp_path: Path, writer: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(WriteError) as error, atomic_folder(out) as folder:
        WRITERS[writer](folder)
    assert str(out) in str(error.value) and "cannot be written" in str(error.value) and "are free" in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_files")
def test_a_row_that_does_not_fit_leaves_the_rows_before_it(tmp_path: Path) -> None:
    file = tmp_path / "replies.jsonl"
    append_rows(file, [{"id": "a", "text": "x" * 100}])
    before = file.read_bytes()
    with pytest.raises(WriteError, match="replies.jsonl: cannot be written: File too large"):
        append_rows(file, [{"id": "b", "text": "x" * 8000}])
    assert file.read_bytes() == before, "half a row stands at the end"


def test_room_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    atomic_write.need_room(tmp_path / "not" / "there", 1)
    with pytest.raises(WriteError, match="No space left on device; about .* GB are needed; .* GB are free there"):
        atomic_write.need_room(tmp_path / "out", 2 * free)


def test_a_file_that_was_read_meanwhile_keeps_its_own_error(tmp_path: Path) -> None:
    elsewhere = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/elsewhere/base/config.json")
    with pytest.raises(PermissionError) as error, atomic_folder(tmp_path / "out"):
        raise elsewhere
    assert error.value is elsewhere
    mine = ValueError("base: Permission denied")
    with pytest.raises(ValueError) as other, atomic_file(tmp_path / "out"):
        raise mine
    assert other.value is mine


AS_NOBODY = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from safevlm.data.atomic_write import write_text
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
write_text(Path(sys.argv[1]) / "file", "x")
"""


def test_a_folder_that_is_closed_says_so(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    words = [sys.executable, "-c", AS_NOBODY, str(tmp_path / "closed")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith("closed/file: cannot be written: Permission denied; choose another place, or have it opened for you")
    )


def test_threads_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            atomic_write.write_text(tmp_path / "file", "x" * 1000 + str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert [len(file.read_text()) for file in tmp_path.iterdir()] == [1001]
