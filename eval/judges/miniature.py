"""The miniature's exact judge on a row of `replies.jsonl`."""

from __future__ import annotations

from typing import Any

from eval.files import Score
from safevlm.miniature.judge import judge


def score(row: dict[str, Any]) -> Score:
    """Label and value of a reply; `raw` is empty, since nothing but the reply was read."""
    truth = row["truth"]
    missing = [name for name in ("level", "task", "things") if name not in truth]
    if missing:
        raise ValueError(f"{row['id']}: truth lacks {missing}; the miniature's judge needs the miniature's suite")
    judgement = judge(row["reply"], level=truth["level"], task=truth["task"], things=truth["things"])
    return Score(row["id"], row["group"], "miniature", judgement.value, judgement.label)
