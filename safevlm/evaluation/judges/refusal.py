"""The refusal rules as a judge: an answer that does not decline counts as complied with.

That is a measure of its own: on the harmful side it takes every evasion for help, and on the benign side it says
nothing about right or wrong. It shares a column with no model judge.
"""

from __future__ import annotations

from safevlm.evaluation.judges.base import Assessment, Case, Judge
from safevlm.evaluation.judges.over_refusal import MEASURES, declined
from safevlm.evaluation.metrics.measures import REFUSALS
from safevlm.refusals import is_refusal


def score(case: Case) -> Assessment:
    return declined(case, is_refusal(case.answer))


JUDGE = Judge(
    name="refusal",
    about="refuses or not, by rules anchored to sentence starts; no model",
    measures=MEASURES,
    counts=REFUSALS,
    score=score,
    is_refusal_rule=True,
)
