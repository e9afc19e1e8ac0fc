"""A run's replies while they come in: one file per process, and one file in the suite's order when all are there.

A lone process adds to `replies.jsonl`, and brings it into the suite's order at the end. Of several, each adds to its
own `replies.<rank>.jsonl`, and whoever finds that every request is answered joins them. Which process asks what:
`safevlm.sharding`.

The trap: a killed process leaves half a line, and a living one may be writing its last line just now. So half a line is
passed over here, and only the owner of a file cuts it off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safevlm.evaluation.runs.files import REPLIES, ReplyRow, Row, check_fields, write_rows
from safevlm.files import FileError, json_line
from safevlm.sharding import Share, locked
from safevlm.types import Sample

OWNERS, JOIN = ".ask.lock", ".join.lock"
"""Files that processes lock: while they ask, and while one of them joins the replies."""


def file_of(out: Path, share: Share) -> Path:
    """The file that this process adds its replies to."""
    return out / REPLIES if share.world == 1 else out / f"replies.{share.rank}.jsonl"


def portion(samples: Sequence[Sample], share: Share) -> list[Sample]:
    """This process's samples, in the suite's order: as many for each, also of what a stopped run left."""
    return [samples[index] for index in share.of_named([sample.request.id for sample in samples])]


def read_all(out: Path) -> dict[str, Row]:
    """Complete rows of all files, by id; the first counts where two processes answered the same request."""
    rows: dict[str, Row] = {}
    for file in (out / REPLIES, *_files(out)):
        for row in complete_rows(file):
            rows.setdefault(row["id"], row)
    return rows


def join(out: Path, ids: Sequence[str], wanted: Sequence[str]) -> bool:
    """One `replies.jsonl` in the order of `ids`, once every wanted one is answered; whether this is so now."""
    if not _files(out):
        rows = read_all(out)
        is_whole = set(wanted) <= set(rows)
        if is_whole and set(rows) <= set(ids) and list(rows) != [name for name in ids if name in rows]:
            _write_in_order(out, rows, ids)
        return is_whole
    with locked(out / JOIN):
        rows = read_all(out)
        if not set(wanted) <= set(rows):
            return False
        _write_in_order(out, rows, ids)
        for file in _files(out):
            file.unlink(missing_ok=True)
        return True


def _write_in_order(out: Path, rows: Mapping[str, Row], ids: Sequence[str]) -> None:
    write_rows(out / REPLIES, [rows[name] for name in ids if name in rows])


def _files(out: Path) -> list[Path]:
    return sorted(out.glob("replies.[0-9]*.jsonl"))


def complete_rows(file: Path, shape: Any = ReplyRow) -> Iterator[Row]:
    """Rows of a file whose last line may be cut short."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:  # none yet, or joined just now
        return
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json_line(line, f"{file}:{number}")
            check_fields(row, shape, f"{file}:{number}")
        except FileError as error:
            raise ValueError(f"{error}; remove the line, and it is asked again") from error
        yield row
