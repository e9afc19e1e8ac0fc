"""Keys that look like a record's labels and are none: a misspelt `safe_type` would train a record without a label.

Other keys are nobody's business: LLaVA's data and everybody's own carry many. So a key is refused when it is nearly
one of ours, or when it is a plain word for it (`level`, `Label`) and its value is a label by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

TYPE, LEVEL = "safe_type", "safe_level"
NEAR: Mapping[str, str] = {
    "safetype": TYPE,
    "safetytype": TYPE,
    "safecategory": TYPE,
    "safetycategory": TYPE,
    "safelevel": LEVEL,
    "safetylevel": LEVEL,
    "severitylevel": LEVEL,
}
"""Spellings without joints and case → the right key; what is close to one of them counts too."""
CLOSE = 0.86
"""Share of letters in common (difflib) from which on a key is a misspelling."""
WORDS = {"type", "category", "class", "label", "level", "severity"}
"""Words that other data use for things of their own, in any case; which label is meant, the value tells."""


def misspelt(raw: Mapping[str, Any], categories: Collection[str], levels: Collection[str]) -> str:
    """What is wrong with a record's keys; empty: nothing. `categories`, `levels`: names of the taxonomy."""
    for key, value in raw.items():
        right = _right_key(str(key)) or _meant(str(key), value, categories, levels)
        if right and (right not in raw or not _is_word(str(key))):
            return f"unknown key {key!r}; a label's key is {right!r}: rename it, or take it out"
    return ""


def _is_word(key: str) -> bool:
    return key.casefold() in WORDS


def _meant(key: str, value: Any, categories: Collection[str], levels: Collection[str]) -> str:
    if not _is_word(key) or not isinstance(value, str):
        return ""
    return TYPE if value in categories else LEVEL if value in levels else ""


@lru_cache(maxsize=4096)
def _right_key(key: str) -> str:
    if key in (TYPE, LEVEL):
        return ""
    plain = re.sub("[^a-z]", "", key.casefold())
    near = get_close_matches(plain, NEAR, n=1, cutoff=CLOSE)
    return NEAR[near[0]] if near else ""
