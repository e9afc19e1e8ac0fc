"""Files and folders that appear whole or not at all: written under a hidden name, renamed when complete.

Whoever may read what the umask allows may read them: some libraries (safetensors) write files for their owner alone.
What a full disk or a missing permission makes of the write is a `WriteError`, whatever library met it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

REASONS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
    errno.EISDIR,
)
"""Why a disk does not take a file."""
UNREASONED = ("PytorchStreamWriter failed", "inline_container", "iostream error", "file write failed")
"""What libraries say of a failed write when they keep the reason to themselves."""
GB = 1e9


class WriteError(OSError):
    """Something could not be written: where, why, and what is free there; `needed` bytes where they are known."""

    def __init__(self, path: Path, code: int | None, needed: int | None = None) -> None:
        super().__init__(code, os.strerror(code) if code else "the disk did not take it", str(path))
        self.needed = needed

    def __str__(self) -> str:
        told = f"{self.filename}: cannot be written: {self.strerror}"
        if self.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{told}; choose another place, or have it opened for you"
        if self.errno in (errno.ENOTDIR, errno.EISDIR):
            return f"{told}; choose another place"
        needed = f"; about {self.needed / GB:.3f} GB are needed" if self.needed else ""
        return f"{told}{needed}; {_free(Path(self.filename)) / GB:.3f} GB are free there"


def need_room(path: Path, needed: int) -> None:
    """WriteError when the disk of `path` has fewer bytes left than are needed."""
    if _free(path) < needed:
        raise WriteError(path, errno.ENOSPC, needed)


@contextlib.contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Around what writes `path`: the disk's refusal as a WriteError, even where a library made another error of it."""
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        code = None if _is_of_elsewhere(error, path) else _reason(error)
        if code is None:
            raise
        raise WriteError(path, code or None) from error


def _is_of_elsewhere(error: BaseException, path: Path) -> bool:
    """Whether it says itself that it is about another file: one that was read meanwhile."""
    if isinstance(error, OSError) and error.filename is not None:
        return not Path(os.fsdecode(error.filename)).absolute().is_relative_to(path.absolute().parent)
    return isinstance(error, ValueError)  # ours, which name their file


def _reason(error: BaseException) -> int | None:
    """The errno behind an error of a write; 0: nobody said which; None: the error is about something else."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in REASONS else None
    text = str(error)
    for code in REASONS:
        if os.strerror(code) in text or f"os error {code})" in text:
            return code
    return 0 if any(words in text for words in UNREASONED) else None


def _free(path: Path) -> int:
    """Bytes that are left on the disk of a path, or of its nearest parent that exists."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Where to write a file that takes its name only when the block ends well; an older one is replaced.

    The hidden name is the thread's own, so several processes and threads may write the same file at once.
    """
    partial = _partial(path)
    with told_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)  # some writers replace the file by one of their own
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces a file as a whole: a reader sees the old one or the new one."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_new(path: Path, text: str) -> bool:
    """Writes a file unless there is one; whether it did. Of several processes at once, one does."""
    if path.exists():
        return False
    partial = _partial(path)
    with told_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            return _link(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _link(partial: Path, path: Path) -> bool:
    try:
        os.link(partial, path)  # unlike a rename, it fails where there is one already
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        os.replace(partial, path)
    return True


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its final name only when the block ends well; an older one is replaced."""
    staging = folder.parent / f".{folder.name}.partial"
    with told_of(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        publish(staging, folder)


def publish(staging: Path, folder: Path) -> None:
    """Renames a finished folder into place, readable as the umask allows; the previous one stays until the rename."""
    open_as_umask(staging)
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(staging, folder)
    shutil.rmtree(old, ignore_errors=True)


def open_as_umask(folder: Path) -> None:
    """Gives all files and folders below the rights that the folder itself got when it was made."""
    mode = folder.stat().st_mode & 0o777
    for place, folders, files in os.walk(folder):
        for names, rights in ((folders, mode), (files, mode & 0o666)):
            for path in (Path(place, name) for name in names):
                if path.stat().st_mode & rights != rights:
                    path.chmod(path.stat().st_mode & 0o777 | rights)


def move_into(folder: Path, paths: Iterable[Path]) -> None:
    """Moves files and folders into a new folder on the same disk."""
    folder.mkdir()
    for path in paths:
        os.replace(path, folder / path.name)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
