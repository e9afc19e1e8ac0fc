"""JSONL that grows row by row. The trap: a process that is killed leaves half a line at the end.

`drop_half_written_line` removes it before rows are added again; every other reader takes it for an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


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
    """Add rows, and do not return before they are with the operating system's disk."""
    text = "".join(json_line(row) for row in rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def json_line(row: Mapping[str, Any]) -> str:
    """A row with its newline. ValueError names the row that holds a number that is not finite."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(f"row {row.get('id')!r} holds a number that is not finite: {error}") from error
