"""Turn `replies.jsonl` into `scores.jsonl`, without the model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from eval.files import SCORES, Score, read_replies, write_rows
from eval.judges import JUDGES


def judge(out: str | Path, judge_name: str = "miniature") -> list[Score]:
    """Score every reply of a run; `scores.jsonl` is replaced as a whole."""
    if judge_name not in JUDGES:
        raise ValueError(f"--judge: unknown judge {judge_name!r}; one of {list(JUDGES)}")
    scores = [JUDGES[judge_name](row) for row in read_replies(Path(out))]
    write_rows(Path(out) / SCORES, [asdict(score) for score in scores])
    return scores
