"""Several processes, one folder: which process does what, and who may write.

The processes never talk to each other: each finds its share from its rank and their number alone, so a later start with
another number of processes goes on from whatever earlier ones left. torchrun says rank and number in RANK and
WORLD_SIZE; without it, `--shard I/N` does.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from safevlm.usage import UsageError

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST = 1 << 20  # processes; the owners' lock file has a byte for each
LINE = 128
"""Bytes of the lock file's line for a rank; line and lock have nothing to do with each other."""
UNLOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what a shared disk without locks says


@dataclass(frozen=True)
class Share:
    """Which of several processes this is."""

    rank: int = 0
    """From 0."""
    world: int = 1
    """How many processes there are."""

    def owns(self, index: int) -> bool:
        """Whether item `index` is this process's, where items are dealt out in turn."""
        return index % self.world == self.rank

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """This process's items, dealt out in turn."""
        return items[self.rank :: self.world]

    def of_named(self, names: Sequence[str]) -> list[int]:
        """Positions of this process's items, ascending: dealt out evenly, by a digest of their names.

        The digest depends on the number of processes. Dealt in turn, all that rank 1 of 2 left undone would fall to
        ranks 1 and 3 of 4; so it stays even too.
        """
        return sorted(self.of(sorted(range(len(names)), key=lambda index: self._digest(names[index]))))

    def _digest(self, name: str) -> bytes:
        return hashlib.sha256(f"{self.world} {name}".encode()).digest()


def share_of(flag: str | None) -> Share:
    """`--shard I/N` (I from 1), or what torchrun says, or the only process. ValueError: not I/N."""
    if flag is None:
        return Share(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    number, slash, of = flag.partition("/")
    if not slash or not number.isdigit() or not of.isdigit() or not 1 <= int(number) <= int(of):
        raise UsageError(f"--shard {flag}: write I/N with I from 1 to N, as in 1/4 … 4/4")
    return Share(int(number) - 1, int(of))


def local_rank() -> int | None:
    """Which process of its machine this is, and so which GPU it takes; None without a launcher."""
    told = os.environ.get("LOCAL_RANK")
    return int(told) if told else None


@contextmanager
def owned(lock: Path, share: Share) -> Iterator[None]:
    """Holds this process's rank in the folder of the lock file.

    ValueError: another process has that rank, or runs as one of another number of processes; it names which. The system
    lets go of the rank when the process dies, however it dies. Each process holds its own byte of the file alone, and
    shares the bytes of the ranks that must not be there.
    """
    _make(lock.parent, "--out")
    with _opened(lock) as file:
        alone = _try_lock(file, exclusive=True, length=1, start=share.rank)
        if not alone or not _try_lock(file, exclusive=False, length=MOST - share.world, start=share.world):
            here = f", and this is {share.rank + 1} of {share.world}" if share.world > 1 else ""
            raise ValueError(_taken(file, lock.parent, share.rank if not alone else None, here, "--out"))
        _sign(file, share.rank)
        yield


@contextmanager
def alone(lock: Path, place: Path, flag: str = "--out") -> Iterator[None]:
    """Holds `place`, a folder or a file, for this process; `lock` is a file in it or beside it.

    ValueError: another process holds it; it names which, and `flag` as what else can be chosen. The lock file goes
    with the block, and so does a folder that was made for it and stayed empty. What a killed process leaves locks
    nobody out.
    """
    is_new = not lock.parent.exists()
    _make(lock.parent, flag)
    with _held(lock, place, flag):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):  # something is in it
                    lock.parent.rmdir()


def _make(folder: Path, flag: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{flag}: {folder} cannot be a folder: a file stands there; choose another") from error


@contextmanager
def _held(lock: Path, place: Path, flag: str) -> Iterator[None]:
    while True:
        with _opened(lock) as file:
            if not _try_lock(file, exclusive=True, length=MOST, start=0):
                raise ValueError(_taken(file, place, 0, "", flag))
            if not _is_at(file, lock):
                continue  # its last holder has removed it between our opening and locking it
            _sign(file, 0)
            yield
            return


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    with _opened(lock) as file:
        _lock(file, exclusive=True, length=1, start=0, wait=True)
        yield


def _opened(lock: Path) -> BinaryIO:
    """The lock file, to read and write anywhere in it; made if it is not there."""
    return os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)


def _is_at(file: BinaryIO, lock: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), lock.stat())
    except FileNotFoundError:
        return False


def _sign(file: BinaryIO, rank: int) -> None:
    """Writes who holds a rank where that rank's line is."""
    told = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    file.seek(rank * LINE)
    file.write(told.encode()[: LINE - 1].ljust(LINE - 1) + b"\n")


def _taken(file: BinaryIO, place: Path, rank: int | None, here: str, flag: str) -> str:
    """The refusal. `rank`: the one that is held; None: one of those that are signed, whichever is held still."""
    file.seek(0)
    content = file.read()
    lines = [content[at : at + LINE].decode(errors="replace").strip("\0 \n") for at in range(0, len(content), LINE)]
    ranks = [rank] if rank is not None else [at for at in range(len(lines)) if not _is_free(file, at)]
    holders = [lines[at] for at in ranks if at < len(lines) and lines[at]]
    who = f" ({holders[0]})" if holders else ""
    return f"{place}: another process works here{who}{here}; wait for it, stop it, or choose another {flag}"


def _is_free(file: BinaryIO, rank: int) -> bool:
    return _try_lock(file, exclusive=False, length=1, start=rank)


def _try_lock(file: BinaryIO, *, exclusive: bool, length: int, start: int) -> bool:
    try:
        _lock(file, exclusive=exclusive, length=length, start=start, wait=False)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _lock(file: BinaryIO, *, exclusive: bool, length: int, start: int, wait: bool) -> None:
    import fcntl  # not on every system, and a lone process that only reads needs none

    command = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.lockf(file, command, length, start)
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise
        log.warning("%s: this disk has no locks; see to it that no two processes have the same rank", file.name)
