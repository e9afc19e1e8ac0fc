"""The rows of a check: JSONL, one line per step that was tried, on the disk before the next step begins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safevlm.data import row_log

FILE = "rows.jsonl"
OK, ABSENT, OUT_OF_MEMORY, FAILED, TIMED_OUT, NOT_RUN = (
    "ok",
    "absent",
    "out of memory",
    "failed",
    "timed out",
    "not run: budget",
)
FINAL = (OK, ABSENT, OUT_OF_MEMORY)
"""A step with such a row is not run again by a call that goes on; all others are."""

Row = Mapping[str, Any]
"""`step`, `group`, `status`, `seconds` (wall time of the step), `limit`, `estimate`, `why` (of what went wrong) and
`result`, what the step measured; JSON-ready."""


def append(file: Path, row: Row) -> None:
    row_log.append_rows(file, [row])


def read(file: Path) -> dict[str, Row]:
    """The newest row of every step, in the order in which steps were first tried. ValueError: a line is no JSON."""
    found: dict[str, Row] = {}
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            found[row["step"]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}:{number}: not a row of a GPU check ({error})") from error
    return found


def result(rows: Mapping[str, Row], step: str) -> dict[str, Any]:
    """What a step measured; empty when it measured nothing."""
    row = rows.get(step, {})
    return row.get("result", {}) if row.get("status") == OK else {}
