"""JSONL that grows row by row. The trap: a process that is killed leaves half a line at the end.

`drop_half_written_line` removes it before rows are added again; every other reader takes it for an error.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safevlm.data.atomic_write import told_of


def drop_half_written_line(path: Path) -> bool:
    """Cut off a last line that has no newline; True when there was one."""
    if not path.exists():
        return False
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete == len(content):
        return False
    with path.open("r+b") as file:
        file.truncate(complete)
    return True


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows, and do not return before they are with the operating system's disk.

    WriteError: the disk did not take them; then the file is as it was.
    """
    content = "".join(json_line(row) for row in rows).encode()
    with told_of(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, before)
            raise


def json_line(row: Mapping[str, Any]) -> str:
    """A row with its newline. ValueError names the row that holds a number that is not finite."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(f"row {row.get('id')!r} holds a number that is not finite: {error}") from error
