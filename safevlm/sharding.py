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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST = 1 << 20  # processes; the owners' lock file has a byte for each
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
        raise ValueError(f"--shard {flag}: write I/N with I from 1 to N, as in 1/4 … 4/4")
    return Share(int(number) - 1, int(of))


def local_rank() -> int | None:
    """Which process of its machine this is, and so which GPU it takes; None without a launcher."""
    told = os.environ.get("LOCAL_RANK")
    return int(told) if told else None


@contextmanager
def owned(lock: Path, share: Share) -> Iterator[None]:
    """Holds this process's rank in the folder of the lock file.

    ValueError: another process has that rank, or runs as one of another number of processes. The system lets go of the
    rank when the process dies, however it dies. Each process holds its own byte of the file alone, and shares the
    bytes of the ranks that must not be there.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+b") as file:
        alone = _try_lock(file, exclusive=True, length=1, start=share.rank)
        if not alone or not _try_lock(file, exclusive=False, length=MOST - share.world, start=share.world):
            raise ValueError(
                f"{lock.parent}: another process works in this folder (here: {share.rank + 1} of {share.world}); "
                "wait for it, stop it, or choose another --out"
            )
        yield


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    with lock.open("a+b") as file:
        _lock(file, exclusive=True, length=1, start=0, wait=True)
        yield


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
