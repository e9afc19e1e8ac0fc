"""Files and folders that appear whole or not at all: written under a hidden name, renamed when complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Where to write a file that takes its name only when the block ends well; an older one is replaced.

    The hidden name is the thread's own, so several processes and threads may write the same file at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        partial.write_text(text, encoding="utf-8")
        os.link(partial, path)  # unlike a rename, it fails where there is one already
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its final name only when the block ends well; an older one is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    publish(staging, folder)


def publish(staging: Path, folder: Path) -> None:
    """Renames a finished folder into place; the previous one stays until the rename."""
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(staging, folder)
    shutil.rmtree(old, ignore_errors=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
