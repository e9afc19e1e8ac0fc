"""What a judge has said before: `judge_cache.jsonl`, a line per call, on disk as soon as the call is answered.

It is what makes judging resumable, and a second judging free. The key is the content (model, prompt, decoding,
images, question, answer), so that nothing said about other content can be found under it. Failed calls are not kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from safevlm.data.row_log import append_rows, drop_half_written_line
from safevlm.evaluation.endpoint import CallOutcome
from safevlm.evaluation.judges.base import Call
from safevlm.evaluation.runs.files import check_fields, numbered_rows
from safevlm.files import checked

FILE = "judge_cache.jsonl"
KEPT = ("said", "refused")
OUTCOME_FIELDS = tuple(field.name for field in fields(CallOutcome))


class CachedCall(TypedDict):
    """A line of the file; the rest of it is a `CallOutcome`."""

    key: str


def key_of(call: Call, content: Mapping[str, Any], digests: Mapping[Path, str]) -> str:
    """Name of a call: what is asked, of whom and how. `content` holds model, prompt hash, decoding and vote."""
    turns = [[turn.role, turn.text, [digests[image] for image in turn.images]] for turn in call]
    text = json.dumps({**content, "turns": turns}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def digest(image: Path) -> str:
    """Of an image's bytes; an image that is gone is an error, since a judge must not go on without it."""
    if not image.is_file():
        raise FileNotFoundError(f"{image}: no such image; the judge sees images, so give it back its place")
    return hashlib.sha256(image.read_bytes()).hexdigest()


def read(path: Path) -> dict[str, CallOutcome]:
    """Outcomes by key; a line that a killed judging left half-written is cut off."""
    if not path.exists():
        return {}
    drop_half_written_line(path)
    found = {}
    for where, row in numbered_rows(path):
        check_fields(row, CachedCall, where)
        found[row["key"]] = checked(CallOutcome, {name: row[name] for name in OUTCOME_FIELDS if name in row}, where)
    return found


def keep(path: Path, key: str, outcome: CallOutcome) -> None:
    if outcome.kind in KEPT:
        path.parent.mkdir(parents=True, exist_ok=True)
        append_rows(path, [{"key": key, **asdict(outcome)}])
