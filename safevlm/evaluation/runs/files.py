"""The files between the steps: JSONL rows in and out, checked.

A run's folder holds `run.json`, `replies.jsonl`, `scores.jsonl` and perhaps `overhead.json`. The trap: a killed run
leaves half a line at the end of a JSONL file (`safevlm.data.row_log`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safevlm.data.atomic_write import write_text
from safevlm.data.row_log import json_line
from safevlm.evaluation.runs import earlier

REPLIES = "replies.jsonl"
SCORES = "scores.jsonl"
OVERHEAD = "overhead.json"

Row = dict[str, Any]

NUMBER = (int, float)
REPLY_FIELDS: dict[str, Any] = {
    "id": str,
    "suite": str,
    "group": str,
    "request": dict,
    "reply": str,
    "refused_by": str,
    "prompt": str,
    "verdict": dict,
    "truth": dict,
    "trace": list,
    "seconds": NUMBER,
}
SCORE_FIELDS: dict[str, Any] = {
    "id": str,
    "group": str,
    "judge": str,
    "value": (*NUMBER, type(None)),
    "label": str,
    "raw": str,
}


@dataclass(frozen=True)
class Score:
    """One row of `scores.jsonl`: what a judge made of a reply."""

    id: str
    group: str
    judge: str
    value: float | None
    """0 to 1, in the sense of the group (harm done, or answered right); None: the judge could not tell."""
    label: str
    """The outcome in one word."""
    raw: str = ""
    """What the judge itself said, for a look at doubtful cases."""


def numbered_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a JSONL file, each with its `file:line`; empty lines are skipped."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error.msg}); a stopped run is mended by `ask`") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where}: a row must be an object, not {type(row).__name__}")
            yield where, row


def check_fields(row: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> None:
    """ValueError when a field is missing or of another type."""
    missing = [name for name in fields if name not in row]
    if missing:
        raise ValueError(f"{where}: missing {missing}; a row has {list(fields)}")
    for name, kind in fields.items():
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            raise ValueError(f"{where}: {name} has the wrong type: {row[name]!r}")


def read_replies(out: Path) -> list[Row]:
    """Rows of `replies.jsonl`, checked; a reply that stands there twice is an error."""
    return _read(out / REPLIES, REPLY_FIELDS, "ask")


def read_scores(out: Path) -> list[Score]:
    """Rows of `scores.jsonl`, checked; values lie in 0-1 or are None."""
    rows = [earlier.score_row(row) for row in _read(out / SCORES, SCORE_FIELDS, "judge")]
    for row in rows:
        if row["value"] is not None and not 0 <= row["value"] <= 1:
            raise ValueError(f"{out / SCORES}: {row['id']}: value {row['value']} lies outside 0-1")
    return [Score(**{name: row[name] for name in SCORE_FIELDS}) for row in rows]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace a JSONL file as a whole."""
    write_text(path, "".join(json_line(row) for row in rows))


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Row:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: must be an object, not {type(table).__name__}")
    return table


def check_kinds(
    path: Path, table: Mapping[str, Any], needed: Mapping[str, Any], optional: Mapping[str, Any] | None = None
) -> None:
    """ValueError: a record, `run.json` or `judge.json`, lacks a key, or holds another kind of value under it."""
    for name, kind in {**needed, **(optional or {})}.items():
        if name not in table and name in needed:
            raise ValueError(f"{path}: lacks {name!r}; mend the file, or make it again in another folder")
        if name in table and (not isinstance(table[name], kind) or isinstance(table[name], bool)):
            told = f"{path}: {name}: {table[name]!r} is no {kind.__name__}"
            raise ValueError(f"{told}; mend the file, or make it again in another folder")


def _read(path: Path, fields: Mapping[str, Any], command: str) -> list[Row]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; make it with `safevlm eval {command}`")
    rows: dict[str, Row] = {}
    for where, row in numbered_rows(path):
        check_fields(row, fields, where)
        if row["id"] in rows:
            raise ValueError(f"{where}: id {row['id']!r} stands here twice; ask and judge again into another folder")
        rows[row["id"]] = row
    return list(rows.values())
