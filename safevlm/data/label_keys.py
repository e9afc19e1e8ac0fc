"""Keys that look like a record's labels and are none: a misspelt `safe_type` would train a record without a label.

Other keys are nobody's business: LLaVA's data and everybody's own carry many. So a key is refused when it is nearly
one of ours, or when a plain word for it stands in it (`risk_level`, `Label`) and its value is a label by name, or a
table of labels.
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
WORDS = frozenset({"type", "category", "level", "severity", "label", "labels", "class", "rating", "risk", "verdict"})
"""Words in keys that other data use for things of their own."""
WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")


def misspelt(raw: Mapping[str, Any], categories: Collection[str], levels: Collection[str]) -> str:
    """What is wrong with a record's keys; empty: nothing."""
    if _are_plain(tuple(map(str, raw))):
        return ""
    for key, value in raw.items():
        right = _near(str(key)) or (_labelled_key(value, categories, levels) if _has_word(str(key)) else "")
        if right and (_near(str(key)) or right not in raw):
            return f"unknown key {key!r}; a label's key is {right!r}: rename it, or take it out"
    return ""


def is_plain(key: str) -> bool:
    """Whether a key is one of ours, or can be no misspelling of one, whatever its value."""
    return not _near(key) and not _has_word(key)


@lru_cache(maxsize=4096)
def _are_plain(keys: tuple[str, ...]) -> bool:
    return all(map(is_plain, keys))


def _labelled_key(value: Any, categories: Collection[str], levels: Collection[str]) -> str:
    """The key of ours that a value belongs to; empty: it is no label by name, nor a table of labels."""
    if isinstance(value, Mapping):
        return next((key for key in (TYPE, LEVEL) if key in value), "")
    if not isinstance(value, str):
        return ""
    return LEVEL if value in levels else TYPE if value in categories else ""


@lru_cache(maxsize=4096)
def _near(key: str) -> str:
    """The key of ours that this one is nearly; empty: it is one of ours, or like none."""
    if key in (TYPE, LEVEL):
        return ""
    near = get_close_matches(re.sub("[^a-z]", "", key.casefold()), NEAR, n=1, cutoff=CLOSE)
    return NEAR[near[0]] if near else ""


@lru_cache(maxsize=4096)
def _has_word(key: str) -> bool:
    return key not in (TYPE, LEVEL) and not WORDS.isdisjoint(word.casefold() for word in WORD.findall(key))
