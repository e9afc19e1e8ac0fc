"""Keys that look like a record's labels and are none: a misspelt `safe_type` would train a record without a label.

Other keys are nobody's business: LLaVA's data and everybody's own carry many. So a key is refused when it is nearly
one of ours, or when it is a plain word for it (`level`) and its value is a label by name.
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
WORDS: Mapping[str, str] = {"type": TYPE, "category": TYPE, "level": LEVEL, "severity": LEVEL}
"""Words that other data use for things of their own."""


def misspelt(raw: Mapping[str, Any], names: Collection[str]) -> str:
    """What is wrong with a record's keys; empty: nothing. `names`: categories and levels of the taxonomy."""
    for key in raw:
        right = _right_key(str(key))
        if right and (str(key) not in WORDS or (right not in raw and _is_label(raw[key], names))):
            return f"unknown key {key!r}; a label's key is {right!r}: rename it, or take it out"
    return ""


def _is_label(value: Any, names: Collection[str]) -> bool:
    return isinstance(value, str) and value in names


@lru_cache(maxsize=4096)
def _right_key(key: str) -> str:
    if key in (TYPE, LEVEL):
        return ""
    plain = re.sub("[^a-z]", "", key.casefold())
    near = get_close_matches(plain, NEAR, n=1, cutoff=CLOSE)
    return NEAR[near[0]] if near else WORDS.get(key, "")
