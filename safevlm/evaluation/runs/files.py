"""The files between the steps: JSONL rows in and out, checked.

A run's folder holds `run.json`, `replies.jsonl`, `scores.jsonl` and perhaps `overhead.json`. The trap: a killed run
leaves half a line at the end of a JSONL file (`safevlm.data.row_log`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required

from typing_extensions import TypedDict

from safevlm import files
from safevlm.data.atomic_write import write_text
from safevlm.data.row_log import json_line
from safevlm.evaluation.runs import earlier
from safevlm.files import FileError, checked, json_lines

REPLIES = "replies.jsonl"
SCORES = "scores.jsonl"
OVERHEAD = "overhead.json"

Row = dict[str, Any]


class VerdictRow(TypedDict, total=False):
    """A verdict as `Verdict.to_dict` gives it, or gave it before there was `looked`."""

    looked: bool
    level: str | None
    category: str | None
    level_probabilities: dict[str, float] | None
    category_probabilities: dict[str, float] | None
    source: str | None
    error: str | None


class TruthRow(TypedDict, total=False):
    """What is true of a request; judges look up what they need besides."""

    category: str
    level: str


class RequestRow(TypedDict, total=False):
    text: Required[str]
    images: list[str]


class ReplyRow(TypedDict):
    id: str
    suite: str
    group: str
    request: RequestRow
    reply: str
    refused_by: str
    prompt: str
    verdict: VerdictRow
    truth: TruthRow
    trace: list[str]
    seconds: float


class OverheadFile(TypedDict):
    """What every `overhead.json` holds."""

    value: float | None
    n: int
    low: float | None
    high: float | None


class ScoreRow(TypedDict):
    id: str
    group: str
    judge: str
    value: float | None
    label: str
    raw: str


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
    for where, row in json_lines(path):
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a row must be an object, not {type(row).__name__}")
        yield where, row


def check_fields(row: Mapping[str, Any], shape: Any, where: str) -> None:
    """ValueError when a field of the shape (a TypedDict) is missing or of another type; more fields are welcome."""
    checked(shape, row, where, more=True)


def read_replies(out: Path) -> list[Row]:
    """Rows of `replies.jsonl`, checked; a reply that stands there twice is an error."""
    return _read(out / REPLIES, ReplyRow, "ask")


def read_scores(out: Path) -> list[Score]:
    """Rows of `scores.jsonl`, checked; values lie in 0-1 or are None."""
    rows = [earlier.score_row(row) for row in _read(out / SCORES, ScoreRow, "judge")]
    for row in rows:
        if row["value"] is not None and not 0 <= row["value"] <= 1:
            raise ValueError(f"{out / SCORES}: {row['id']}: value {row['value']} lies outside 0-1")
    return [Score(**{name: row[name] for name in ScoreRow.__annotations__}) for row in rows]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace a JSONL file as a whole."""
    write_text(path, "".join(json_line(row) for row in rows))


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, shape: Any = None) -> Row:
    """A record: a table, with at least the keys of `shape` (a TypedDict). ValueError names the file and the key."""
    table = files.read_json(path)
    if not isinstance(table, dict):
        raise ValueError(f"{path}: must be an object, not {type(table).__name__}")
    if shape is None:
        return table
    try:
        return checked(shape, table, str(path), more=True)
    except FileError as error:
        raise ValueError(f"{error}; mend the file, or make it again in another folder") from error


def _read(path: Path, shape: Any, command: str) -> list[Row]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; make it with `safevlm eval {command}`")
    rows: dict[str, Row] = {}
    for where, row in numbered_rows(path):
        check_fields(row, shape, where)
        if row["id"] in rows:
            raise ValueError(f"{where}: id {row['id']!r} stands here twice; ask and judge again into another folder")
        rows[row["id"]] = row
    return list(rows.values())
