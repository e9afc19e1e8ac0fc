"""Judges: what a reply is worth. One table, one small file per kind; judges without a model never import torch.

name                       what it is
refusal, rtvlm …           a row of the table JUDGES
package.module:NAME        a `Judge` of the user's own code, or a callable without arguments that gives one
(entry points)             the same of an installed distribution, in the group `safevlm.judges`
"""

from __future__ import annotations

from dataclasses import replace

from safevlm.evaluation.judges import (
    choice,
    guards,
    holisafe,
    miniature,
    mssbench,
    over_refusal,
    pairs,
    phrases,
    pictograms,
    refusal,
    rubric,
    safety,
    siuo,
    strongreject,
    vlsbench,
)
from safevlm.evaluation.judges.base import Judge
from safevlm.evaluation.metrics.measures import measures_named
from safevlm.plugins import Registry


def _adapt(name: str, found: object) -> Judge:
    """A plug-in's attribute as a row under the name that asked for it."""
    judge = found() if callable(found) and not isinstance(found, Judge) else found
    if not isinstance(judge, Judge):
        raise ValueError(
            f"is a {type(judge).__name__}, not a safevlm.evaluation.judges.Judge nor a callable that gives one"
        )
    if (judge.score is None) == (judge.calls is None or judge.read is None):
        raise ValueError("needs either `score`, or `calls` and `read`")
    for names in judge.counts.values():
        measures_named(names)
    return replace(judge, name=name)


JUDGES: Registry[Judge] = Registry(
    "judges",
    {
        judge.name: judge
        for judge in (
            miniature.JUDGE,
            pictograms.JUDGE,
            refusal.JUDGE,
            phrases.JUDGE,
            choice.JUDGE,
            rubric.JUDGE,
            safety.SAFETY,
            safety.SAFETY_WITH_IMAGE,
            strongreject.JUDGE,
            guards.LLAMA_GUARD,
            guards.LLAMA_GUARD_4,
            guards.LLAMA_GUARD_3_VISION,
            guards.LLAVAGUARD,
            guards.HARMBENCH,
            pairs.JUDGE,
            safety.MM_SAFETYBENCH,
            vlsbench.JUDGE,
            siuo.JUDGE,
            over_refusal.MOSSBENCH,
            over_refusal.XSTEST,
            holisafe.JUDGE,
            mssbench.JUDGE,
        )
    },
    _adapt,
)


def judge_of(name: str, where: str = "--judge") -> Judge:
    """A judge by name or reference; ValueError names those there are."""
    return JUDGES.find(name, where)
