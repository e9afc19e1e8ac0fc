"""The miniature's own columns, from scores alone."""

from __future__ import annotations

from collections.abc import Sequence

from safevlm.evaluation.metrics.measures import MEASURES
from safevlm.evaluation.metrics.rates import Rate, measured, of_groups
from safevlm.evaluation.runs.files import Score
from safevlm.evaluation.suites.miniature import SUITE

HEADLINES = {one.name: one for one in SUITE.headlines}


def headline(name: str, scores: Sequence[Score]) -> Rate:
    """One column of the miniature's own table."""
    return measured(of_groups(scores, HEADLINES[name].groups), MEASURES[HEADLINES[name].measure])
