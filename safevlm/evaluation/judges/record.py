"""`judge.json`, beside `scores.jsonl`: judge, prompt, decoding, whether it saw the image, and the outcomes.

Two runs compare only if their fingerprints are equal: judge, model, prompt, decoding and what it was shown.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Required

from typing_extensions import TypedDict

from safevlm.data import made_by
from safevlm.evaluation.judges.base import UNSCORED, Case, Judge
from safevlm.evaluation.judges.calls import JudgeAnswers
from safevlm.evaluation.judges.client import JudgeClient
from safevlm.evaluation.judges.cost import cost
from safevlm.evaluation.judges.options import Prices
from safevlm.evaluation.judges.refusal_table import Says, held_out, rule_files
from safevlm.evaluation.runs import earlier, run_file
from safevlm.evaluation.runs.files import Row, Score, read_json

FILE = "judge.json"


class JudgeFile(TypedDict, total=False):
    """What is read of a `judge.json`."""

    judge: Required[str]
    fingerprint: Required[str]
    model: str | None
    unit: str
    measures: dict[str, str]
    counts: dict[str, list[str]]
    outcomes: dict[str, int]
    scores_sha256: str


@dataclass(frozen=True)
class JudgeFacts:
    """What the record is made of."""

    judge: Judge
    client: JudgeClient | None
    answers: JudgeAnswers | None
    prompt_digest: str
    prompt_file: str
    prices: Prices


def read(folder: Path) -> Row:
    """A folder's record in today's keys; empty when there is none. ValueError: it does not say who judged."""
    path = folder / FILE
    if not path.is_file():
        return {}
    return earlier.judge_record(read_json(path, JudgeFile))


def table(facts: JudgeFacts, scores: Sequence[Score], path: Path) -> dict[str, Any]:
    """All but the times."""
    judge = facts.judge
    return {
        "schema": 1,
        "judge": judge.name,
        "about": judge.about,
        "measures": dict(judge.measures),
        "counts": {side: list(names) for side, names in judge.counts.items()},
        "unit": judge.unit,
        **_model(facts),
        "sees_image": judge.sees_image,
        "fingerprint": fingerprint(facts),
        "n": len(scores),
        "outcomes": outcomes(scores),
        "labels": dict(Counter(score.label for score in scores).most_common()),
        **({"calls": _calls(facts)} if facts.answers else {}),
        **({"refusal_rules": held_out(_says_refused(judge))} if judge.is_refusal_rule else {}),
        "rules_sha256": made_by.digest(rule_files()),
        "scores_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "versions": run_file.versions(),
    }


def _says_refused(judge: Judge) -> Says:
    assert judge.score is not None  # rules need no model
    score = judge.score
    return lambda text: score(Case("", "", "harmful", "", text)).label == "refused"


def fingerprint(facts: JudgeFacts) -> str:
    """Equal for two judgings whose numbers may share a column."""
    client = facts.client
    content = {
        "judge": facts.judge.name,
        "model": client.model if client else "",
        "decoding": earlier.hashed(client.decoding) if client else {},
        "prompt": facts.prompt_digest,
        "sees_image": facts.judge.sees_image,
        "votes": facts.judge.votes,
    }
    return hashlib.sha256(json.dumps(earlier.hashed(content), sort_keys=True).encode("utf-8")).hexdigest()[:16]


def outcomes(scores: Sequence[Score]) -> dict[str, int]:
    """scored, and every reason for no score, zeros too: what is not there cannot be overlooked."""
    counts = Counter("scored" if score.value is not None else score.label for score in scores)
    return {name: counts.pop(name, 0) for name in ("scored", *UNSCORED)} | dict(counts)


def _model(facts: JudgeFacts) -> dict[str, Any]:
    if facts.client is None:
        return {"model": None, "prompt_sha256": facts.prompt_digest, "decoding": {}}
    client = facts.client
    own = "ours" if facts.judge.prompts else "none; the model's own format"
    return {
        "model": client.model,
        "served_as": list(facts.answers.served_as) if facts.answers else [],
        "place": client.place,
        "prompt_is": f"file {facts.prompt_file}" if facts.prompt_file else own,
        "prompt_sha256": facts.prompt_digest,
        "decoding": dict(client.decoding),
        "votes": 1 if client.is_repeatable else facts.judge.votes,
    }


def _calls(facts: JudgeFacts) -> dict[str, Any]:
    assert facts.answers is not None
    answers = facts.answers
    counts = {name: getattr(answers, name) for name in ("asked", "cached", "tokens_in", "tokens_out")}
    return counts | {"cost": cost(answers.tokens_in, answers.tokens_out, facts.prices), "prices": asdict(facts.prices)}
