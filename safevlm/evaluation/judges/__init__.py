"""Judges: what a reply is worth. One table, one small file per kind; judges without a model never import torch."""

from __future__ import annotations

from collections.abc import Mapping

from safevlm.evaluation.judges import (
    choice,
    guards,
    holisafe,
    miniature,
    mssbench,
    over_refusal,
    pairs,
    phrases,
    refusal,
    rubric,
    safety,
    siuo,
    strongreject,
    vlsbench,
)
from safevlm.evaluation.judges.base import Judge

JUDGES: Mapping[str, Judge] = {
    "miniature": miniature.JUDGE,
    "refusal": refusal.JUDGE,
    "phrases": phrases.JUDGE,
    "choice": choice.JUDGE,
    "rtvlm": rubric.JUDGE,
    "safety": safety.SAFETY,
    "safety_with_image": safety.SAFETY_WITH_IMAGE,
    "strongreject": strongreject.JUDGE,
    "llama_guard": guards.LLAMA_GUARD,
    "llama_guard_4": guards.LLAMA_GUARD_4,
    "llama_guard_3_vision": guards.LLAMA_GUARD_3_VISION,
    "llavaguard": guards.LLAVAGUARD,
    "harmbench": guards.HARMBENCH,
    "pairs": pairs.JUDGE,
    "mm_safetybench": safety.MM_SAFETYBENCH,
    "vlsbench": vlsbench.JUDGE,
    "siuo": siuo.JUDGE,
    "mossbench": over_refusal.MOSSBENCH,
    "xstest": over_refusal.XSTEST,
    "holisafe": holisafe.JUDGE,
    "mssbench": mssbench.JUDGE,
}
"""Name, as a suite gives it, and judge."""
