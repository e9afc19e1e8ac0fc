"""A run's replies while they come in: one file per process, and one file in the suite's order when all are there.

A lone process adds to `replies.jsonl`. Of several, each adds to its own `replies.<rank>.jsonl`, and whoever finds that
every request is answered joins them. Which process asks what is a matter of ids and of how many processes there are,
so they never have to talk to each other, and a later start with another number of processes goes on from any of it.

The trap: a killed process leaves half a line, and a living one may be writing its last line just now. So half a line is
passed over here, and only the owner of a file cuts it off.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safevlm.analysis.audit.plan import Share
from safevlm.evaluation.runs.files import REPLIES, REPLY_FIELDS, Row, check_fields, write_rows
from safevlm.types import Sample

log = logging.getLogger(__name__)

OWNERS, JOIN = ".ask.lock", ".join.lock"
MOST = 1 << 20  # processes; the owners' lock file has a byte for each
UNLOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what a shared disk without locks says


def part_of(out: Path, share: Share) -> Path:
    """The file that this process adds its replies to."""
    return out / REPLIES if share.world == 1 else out / f"replies.{share.rank}.jsonl"


def portion(samples: Sequence[Sample], share: Share) -> list[Sample]:
    """This process's samples, in the suite's order: dealt out evenly, and what a stopped run left stays even too.

    Dealt by a digest that depends on the number of processes: dealt by position, all that rank 1 of 2 left would fall
    to ranks 1 and 3 of 4.
    """
    dealt = sorted(range(len(samples)), key=lambda index: _digest(share.world, samples[index].request.id))
    return [samples[index] for index in sorted(dealt[share.rank :: share.world])]


def read_all(out: Path) -> dict[str, Row]:
    """Complete rows of all files, by id; the first counts where two processes answered the same request."""
    rows: dict[str, Row] = {}
    for file in (out / REPLIES, *_parts(out)):
        for row in complete_rows(file):
            rows.setdefault(row["id"], row)
    return rows


def join(out: Path, ids: Sequence[str], wanted: Sequence[str]) -> bool:
    """One `replies.jsonl` in the order of `ids`, once every wanted one is answered; whether this is so now."""
    if not _parts(out):
        return set(wanted) <= set(read_all(out))
    with _locked(out / JOIN):
        rows = read_all(out)
        if not set(wanted) <= set(rows):
            return False
        write_rows(out / REPLIES, [rows[name] for name in ids if name in rows])
        for part in _parts(out):
            part.unlink(missing_ok=True)
        return True


@contextmanager
def owned(out: Path, share: Share) -> Iterator[None]:
    """Holds this process's place in the folder. ValueError: another process has it, or runs as one of more processes.

    The system lets go of it when the process dies, however it dies. Each process holds its own byte of a lock file
    alone, and shares the bytes of the ranks that must not be there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / OWNERS).open("a+b") as file:
        alone = _try_lock(file, exclusive=True, length=1, start=share.rank)
        if not alone or not _try_lock(file, exclusive=False, length=MOST - share.world, start=share.world):
            raise ValueError(
                f"{out}: another process is asking into this folder (here: {share.rank + 1} of {share.world}); "
                "wait for it, stop it, or choose another --out"
            )
        yield


def _digest(world: int, name: str) -> bytes:
    return hashlib.sha256(f"{world} {name}".encode()).digest()


def _parts(out: Path) -> list[Path]:
    return sorted(out.glob("replies.[0-9]*.jsonl"))


def complete_rows(file: Path, fields: Mapping[str, Any] = REPLY_FIELDS) -> Iterator[Row]:
    """Rows of a file whose last line may be cut short."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:  # none yet, or joined just now
        return
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}:{number}: not JSON; remove the line, and it is asked again") from error
        check_fields(row, fields, f"{file}:{number}")
        yield row


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a+b") as file:
        _lock(file, exclusive=True, length=1, start=0, wait=True)
        yield


def _try_lock(file: BinaryIO, *, exclusive: bool, length: int, start: int) -> bool:
    try:
        _lock(file, exclusive=exclusive, length=length, start=start, wait=False)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _lock(file: BinaryIO, *, exclusive: bool, length: int, start: int, wait: bool) -> None:
    import fcntl  # not on every system, and judging and reporting need none

    command = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.lockf(file, command, length, start)
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise
        log.warning("%s: this disk has no locks; see to it that no two processes ask for the same rank", file.name)
