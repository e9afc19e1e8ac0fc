"""The table of suites: a row per benchmark, from its own file; plug-ins add theirs."""

from __future__ import annotations

from dataclasses import replace

from safevlm.evaluation.suites import (
    advbench,
    figstep,
    figstep_pro,
    holisafe,
    jailbreakv,
    miniature,
    mm_safetybench,
    mossbench,
    mssbench,
    pictograms,
    risk_sets,
    rtvlm,
    siuo,
    spa_vl,
    vlguard,
    vlsbench,
    xstest,
)
from safevlm.evaluation.suites.suite import Suite
from safevlm.plugins import Registry


def _adapt(name: str, found: object) -> Suite:
    """A plug-in's attribute as a row under the name that asked for it."""
    suite = found() if callable(found) and not isinstance(found, Suite) else found
    if not isinstance(suite, Suite):
        raise ValueError(
            f"is a {type(suite).__name__}, not a safevlm.evaluation.suites.Suite nor a callable that gives one"
        )
    return replace(suite, name=name)


SUITES: Registry[Suite] = Registry(
    "suites",
    {
        suite.name: suite
        for suite in (
            miniature.SUITE,
            pictograms.SUITE,
            rtvlm.SUITE,
            rtvlm.TEST,
            risk_sets.SUITE,
            vlguard.SUITE,
            mm_safetybench.SUITE,
            mm_safetybench.TINY_SUITE,
            figstep.SUITE,
            figstep.TINY_SUITE,
            figstep_pro.SUITE,
            spa_vl.SUITE,
            jailbreakv.SUITE,
            jailbreakv.MINI_SUITE,
            vlsbench.SUITE,
            siuo.GEN_SUITE,
            siuo.MCQ_SUITE,
            holisafe.SUITE,
            mssbench.SUITE,
            mossbench.SUITE,
            mossbench.CONTRAST_SUITE,
            xstest.SUITE,
            advbench.SUITE,
        )
    },
    _adapt,
)
