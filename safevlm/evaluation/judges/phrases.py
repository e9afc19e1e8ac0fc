"""A list of refusal phrases, read from a file of the user's, with the matching rule that belongs to it.

The lists in use are not ours to ship, and the rule is part of the metric: the same list, matched otherwise, is
another number. To reproduce a published one, take the list from its authors' repository, one phrase per line, and name
the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from safevlm.evaluation.judges.base import Assessment, Case, Judge
from safevlm.evaluation.judges.options import JudgeOptions
from safevlm.evaluation.judges.over_refusal import MEASURES, declined
from safevlm.evaluation.metrics.measures import REFUSALS
from safevlm.files import read_text
from safevlm.usage import UsageError

MATCHES: dict[str, Callable[[str, str], bool]] = {
    "substring": lambda answer, phrase: phrase in answer,
    "substring-lower": lambda answer, phrase: phrase in answer.lower(),
    "prefix": lambda answer, phrase: answer.startswith(phrase),
    "prefix-lower": lambda answer, phrase: answer.lower().startswith(phrase),
}
"""The phrase is taken as it stands in every rule: a capital in it can never match a lower-cased answer."""


def read_phrases(path: Path) -> list[str]:
    """One phrase per line; empty lines are skipped, spaces at the edges too. ValueError when there is none."""
    phrases = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not phrases:
        raise ValueError(f"--phrases {path}: no phrase in it; one per line")
    return phrases


def holds_phrase(answer: str, phrases: Sequence[str], match: str) -> bool:
    if match not in MATCHES:
        raise UsageError(f"--match: unknown rule {match!r}; one of {list(MATCHES)}")
    return any(MATCHES[match](answer.strip(), phrase) for phrase in phrases)


def with_list(judge: Judge, options: JudgeOptions) -> Judge:
    """The judge `phrases` with the user's list and rule, both part of what its verdicts depend on."""
    if options.phrases is None:
        raise UsageError("--judge phrases: give the list with --phrases FILE, one per line, and its rule with --match")
    phrases, match = read_phrases(Path(options.phrases)), options.match

    def score(case: Case) -> Assessment:
        return declined(case, holds_phrase(case.answer, phrases, match))

    return replace(judge, score=score, prompts=(match, *phrases))


def _without_list(case: Case) -> Assessment:
    raise ValueError("the judge `phrases` scores nothing before it has its list")


JUDGE = Judge(
    name="phrases",
    about="holds a phrase of a list of the user's (--phrases, --match); no model",
    measures=MEASURES,
    counts=REFUSALS,
    score=_without_list,
    is_refusal_rule=True,
    options=("phrases", "match"),
    configure=with_list,
)
