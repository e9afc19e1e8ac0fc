"""A used folder: the same work may be done there again, other work may not. The record beside the result tells which.

Whoever overwrites a result with another one in its place leaves everybody who read the first with a wrong belief.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safevlm.files import FileError, read_json

LONGEST = 60
"""Characters of a value in the message."""


def refuse_other_work(record: Path, facts: Mapping[str, Any], flag: str = "--out") -> None:
    """ValueError: `record`, a JSON file of an earlier start, tells of other `facts`; it names each key, old and new.

    Keys that the record lacks, since an earlier version wrote it, are not compared, nor is a file that is no record.
    """
    if not record.is_file():
        return
    try:
        known = read_json(record)
    except FileError:
        return  # half of one, or somebody's own: it tells of no work
    refuse_other_facts(record, known if isinstance(known, dict) else {}, facts, flag)


def refuse_other_facts(place: Path, known: Mapping[str, Any], facts: Mapping[str, Any], flag: str = "--out") -> None:
    """The same, of a record that was read already."""
    differing = {key: (known[key], now) for key, now in _plain(facts).items() if key in known and known[key] != now}
    if differing:
        told = "; ".join(f"{key} {_short(before)} -> {_short(now)}" for key, (before, now) in differing.items())
        raise ValueError(f"{place}: made of something else: {told}. Set it back, remove it, or choose another {flag}")


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
