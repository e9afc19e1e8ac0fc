"""The verdict that a server tells in an answer's `moderation` (OpenAI's inline form), and what it leaves unsaid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from safevlm.serve.console.account import probability_lines, verdict_line
from safevlm.taxonomy import CLEAN, SAFE
from safevlm.types import Verdict

FLAGGED = "flagged"
"""Level of what a server flags without a level."""
UNTOLD = "not told: the server says nothing about what a guard saw or did, so nothing is known about this request"
STOPPED = "not told: the answer was stopped before the server said what its guard saw"


def told_verdict(moderation: object, server: str, is_whole: bool) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and lines for a person. `is_whole`: the answer came to its end."""
    if not isinstance(moderation, Mapping):
        return Verdict.not_looked(server), (UNTOLD if is_whole else STOPPED,)
    verdict, lines = _of_question(moderation.get("input"), server)
    return verdict, (*lines, *_of_answer(moderation.get("output")))


def _of_question(told: object, server: str) -> tuple[Verdict, list[str]]:
    if error := _error(told):
        verdict = Verdict.not_looked(server, error=error)
        return verdict, [verdict_line(verdict), f"the server says: {error}"]
    result = _worst(told)
    if result is None:
        return Verdict.not_looked(server), [UNTOLD]
    is_flagged, scores = bool(result.get("flagged")), _numbers(result.get("category_scores"))
    level = result.get("level")
    verdict = Verdict(
        level=level if isinstance(level, str) and level else FLAGGED if is_flagged else SAFE,
        category=_category(result, scores) if is_flagged else CLEAN,
        category_probabilities=scores,
        source=server,
        looked=result.get("looked") is not False,
    )
    return verdict, [verdict_line(verdict), *(probability_lines(verdict) if verdict.looked else ())]


def _of_answer(told: object) -> list[str]:
    if error := _error(told):
        return [f"the answer was not looked at: {error}"]
    result = _worst(told)
    if result is None or result.get("looked") is False:
        return []
    if not result.get("flagged"):
        return ["the answer: nothing was flagged"]
    return [f"the answer: flagged, category {_category(result, _numbers(result.get('category_scores')))}"]


def _error(told: object) -> str:
    if not isinstance(told, Mapping) or told.get("type") != "error":
        return ""
    return str(told.get("message") or told.get("code") or "no reason given")


def _worst(told: object) -> Mapping[str, Any] | None:
    """The first result that is flagged, or the first; a responses API's single result is its own."""
    results = told.get("results", [told]) if isinstance(told, Mapping) else []
    usable = [each for each in results if isinstance(each, Mapping)] if isinstance(results, list) else []
    return next((each for each in usable if each.get("flagged")), usable[0] if usable else None)


def _category(result: Mapping[str, Any], scores: Mapping[str, float]) -> str:
    categories = result.get("categories")
    flagged = [str(name) for name, value in categories.items() if value] if isinstance(categories, Mapping) else []
    return max(flagged, key=lambda name: scores.get(name, 0.0), default=FLAGGED)


def _numbers(table: object) -> dict[str, float]:
    pairs = table.items() if isinstance(table, Mapping) else ()
    return {str(name): float(value) for name, value in pairs if isinstance(value, int | float) and math.isfinite(value)}
