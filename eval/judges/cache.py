"""What a judge has said before: `judge_cache.jsonl`, a line per call, on disk as soon as the call is answered.

It is what makes judging resumable, and a second judging free. The key is the content (model, prompt, decoding,
pictures, question, answer), so that nothing said about other content can be found under it. Failed calls are not kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from eval.endpoint import Outcome
from eval.files import append_rows, check_fields, drop_half_written_line, numbered_rows
from eval.judges.base import Call

FILE = "judge_cache.jsonl"
KEPT = ("said", "refused")
FIELDS: Mapping[str, Any] = {"key": str, "kind": str, "text": str}
OUTCOME_FIELDS = tuple(field.name for field in fields(Outcome))


def key_of(call: Call, content: Mapping[str, Any], digests: Mapping[Path, str]) -> str:
    """Name of a call: what is asked, of whom and how. `content` holds model, prompt hash, decoding and vote."""
    turns = [[turn.role, turn.text, [digests[picture] for picture in turn.pictures]] for turn in call]
    text = json.dumps({**content, "turns": turns}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def digest(picture: Path) -> str:
    """Of a picture's bytes; a picture that is gone is an error, since a judge must not go on without it."""
    if not picture.is_file():
        raise FileNotFoundError(f"{picture}: no such picture; the judge sees pictures, so give it back its place")
    return hashlib.sha256(picture.read_bytes()).hexdigest()


def read(path: Path) -> dict[str, Outcome]:
    """Outcomes by key; a line that a killed judging left half-written is cut off."""
    if not path.exists():
        return {}
    drop_half_written_line(path)
    found = {}
    for where, row in numbered_rows(path):
        check_fields(row, FIELDS, where)
        found[row["key"]] = Outcome(**{name: row[name] for name in OUTCOME_FIELDS if name in row})
    return found


def keep(path: Path, key: str, outcome: Outcome) -> None:
    if outcome.kind in KEPT:
        path.parent.mkdir(parents=True, exist_ok=True)
        append_rows(path, [{"key": key, **asdict(outcome)}])
